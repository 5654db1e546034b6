"""Names that changed: the old one works for one version, and one line says the new one (CONTRIBUTING.md says how)."""

LAST = "0.2"  # the last version that takes the old names


def renamed(old: str, new: str) -> str:
    """Return the notice for whoever still writes `old`."""
    return f"{old} is now called {new}; the old name works up to version {LAST}"
