"""The preference app under load and faults, through the process and the calls that people use."""
