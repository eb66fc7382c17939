"""What a compiled forward takes for granted of its arguments."""

from torch import nn


def expect_none(unit: nn.Module, **arguments: object) -> None:
    """ValueError where an argument is given that no call of the base gave when this file was compiled."""
    for name, value in arguments.items():
        if value is not None:
            raise ValueError(
                f"{type(unit).__name__} was compiled for {name}=None: recompile for a base that gives another"
            )


def expect_given(unit: nn.Module, **arguments: object) -> None:
    """ValueError where an argument is left out that every call of the base gave when this file was compiled."""
    for name, value in arguments.items():
        if value is None:
            raise ValueError(
                f"{type(unit).__name__} was compiled for calls with {name}: recompile for a base without it"
            )
