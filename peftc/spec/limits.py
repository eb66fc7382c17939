"""The ceilings of a spec: `trained: "<= 12%"` of the base, or a number of parameters."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

_LIMIT = re.compile(r"\s*(<=|<)?\s*(\d[\d_]{0,18})(\.\d{1,9})?\s*(%)?\s*", re.ASCII)


@dataclass(frozen=True)
class Limit:
    """At most (or less than) `amount` parameters, or percent of the base."""

    amount: Fraction
    percent: bool = False
    strict: bool = False

    def allows(self, count: int, base: int) -> bool:
        """Whether a count keeps the limit, given the parameters of the base, its head left out.  Exact."""
        value = Fraction(100 * count, max(1, base)) if self.percent else Fraction(count)
        return value < self.amount if self.strict else value <= self.amount

    def __str__(self) -> str:
        number = f"{int(self.amount):,}" if self.amount.denominator == 1 else f"{float(self.amount):g}"
        return f"{'<' if self.strict else '<='} {number}{'%' if self.percent else ''}"


def parse(value: Any) -> Any:
    """A limit from its text or integer.  Raises ValueError."""
    if isinstance(value, Limit):
        return value
    match = _LIMIT.fullmatch(str(value)) if isinstance(value, (str, int)) and not isinstance(value, bool) else None
    if match is None or (match[3] and not match[4]):
        raise ValueError('a limit reads "<= 12%", "< 1_000_000" or 1000000')
    amount = Fraction(match[2].replace("_", "") + (match[3] or ""))
    return Limit(amount, percent=bool(match[4]), strict=match[1] == "<")


Ceiling = Annotated[Limit, BeforeValidator(parse, json_schema_input_type=str | int)]


class Limits(BaseModel):
    """Ceilings that a compile must keep."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trained: Ceiling | None = Field(None, description='what requires gradients, a head included: "<= 12%" of the base')
    stored: Ceiling | None = Field(None, description='what must be kept to run the model: "< 1_000_000", or "<= 1%"')
