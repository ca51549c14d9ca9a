"""Is what the kit computes what TRL 1.12 computes? Same weights, same batch, both codes run, one table.

    python -m benchmarks.parity [--only NAME ...] [--json FILE] [--record FILE]

`world.py` holds the weights and the batches, `rows.py` says how two results are compared, `trl_code.py` how TRL's own code
is reached; `sft.py`, `reward.py`, `preference.py`, `grouped.py`, `ppo.py` and `pieces.py` hold the cases, each with our side
and theirs. Our sides never import trl: `golden.py` compares them with what TRL gave when it was recorded.
"""
