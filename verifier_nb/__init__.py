"""Is this worked solution right? Five lines:

    import verifier_nb
    verifier_nb.check("12 * 3 = 38, so she has 38.")                       # every equation, recomputed; needs no model
    verifier_nb.steps("She buys 12 bags. 12 * 3 = 36 apples.")             # the solution, step by step
    judge = verifier_nb.Verifier.from_pretrained("default")                # the verifier in the box
    judge.score("Tom has 3 apples and buys 2. How many?", "3 - 2 = 1")     # a data frame: p_flawed, p_calibrated, verdict
    verifier_nb.inject({"question": "…", "solution": "2 + 3 = 5"}, "computational")  # a flawed solution of a known kind

`make_reward()` makes the verifier a reward function for TRL. Nothing large is imported before it is needed.
"""
from importlib import import_module

__version__ = "0.1.0"

_OFFERED = {"Verifier": "scoring", "check": "solution", "steps": "splitting", "inject": "errors", "make_reward": "reward"}
__all__ = list(_OFFERED)


def __getattr__(name):
    "What the package offers, imported when it is first asked for."
    if name not in _OFFERED: raise AttributeError(f"module 'verifier_nb' has no attribute {name!r}")
    return getattr(import_module(f"verifier_nb.{_OFFERED[name]}"), name)


def __dir__(): return sorted({*globals(), *_OFFERED})
