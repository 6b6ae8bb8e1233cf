"""Studies that train and compare models, one folder for each question; every command can be interrupted and resumed.

`show.py` prints the tables of the published results. What the studies share is in `common/`.
"""
