"""What may import what: a module may import from layers below its own, and from inside its own package.

`tests/test_layers.py` enforces the list, and `docs/_hooks/layers.py` draws it.
"""

#: Names of packages and modules of dro_temp, the lowest layer first.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("_typing", "_checks", "_compiler", "_files", "_optional", "_pytree", "_repr"),
    ("functional", "distributed"),
    ("kernels",),
    ("interfaces",),
    ("estimators",),
    ("predictors", "losses", "risks", "hosts", "datasets", "plotting"),
    ("objective",),
    ("optim", "schedules", "recipes", "evaluation"),
    ("testing", "integrations"),
    ("cli",),
)
