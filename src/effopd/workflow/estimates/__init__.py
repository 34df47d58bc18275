"""What an experiment takes, estimated before it is begun: GPU hours, disk and memory. Light to import (no torch).

`hardware` knows GPUs, `work` what jobs of models do on them, `parts` what each run, model and analysis is made of, and
`experiment` adds them up. What all assume is in the section `estimate` of the configuration.
"""
