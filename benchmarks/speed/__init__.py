"""How fast is the kit, on the same work and in the same minute, beside well-configured peers?

    python -m benchmarks.speed [--rows NAME ...] [--rounds N] [--threads N] [--quick] [--json FILE]

`work.py` says what is done, `ours.py` and `theirs.py` how each side does it, `rows.py` who is compared with whom.
"""
