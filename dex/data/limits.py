"""Numbers that the settings of a datamodule must not fall below."""


def check_least(settings: object, **least: int) -> None:
    """Raises ValueError for one that is too small, by its name."""
    for name, value in least.items():
        if getattr(settings, name) < value:
            raise ValueError(f"data.{name} is {getattr(settings, name)}, need at least {value}")
