"""What may import what: a module may import from layers below its own, and from inside its own package.

`tests/repository/test_layers.py` enforces the list, and `docs/_hooks/layers.py` draws it.
"""

#: Names of packages and modules of dro_temp, the lowest layer first.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("_faults", "_typing", "_version"),
    (
        "_checks",
        "_autograd",
        "_files",
        "_loading",
        "_modes",
        "_module_tree",
        "_optional",
        "_pytree",
        "_tensors",
    ),
    ("functional", "distributed"),
    ("interfaces",),
    ("state", "kernels"),
    ("estimators",),
    ("predictors", "losses", "risks", "hosts", "datasets", "plotting"),
    ("objective",),
    ("optim", "recipes", "evaluation"),
    ("_schemes",),
    ("testing", "integrations"),
    ("cli",),
)
