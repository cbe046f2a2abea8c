"""Assertions that say by how much two tensors differ, or at which pair a value is not finite."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from adadpo_lightning.losses.testing.samples import rows

if TYPE_CHECKING:
    from torch import Tensor

    from adadpo_lightning.types import PairLogps


def expect(condition: bool, message: str) -> None:
    """Raise an AssertionError with `message` unless `condition` holds."""
    if not condition:
        raise AssertionError(message)


def finite(name: str, value: Tensor, x: PairLogps) -> None:
    """All values are finite; if not, show the first pair that is not."""
    bad = (~value.isfinite()).nonzero()
    if len(bad):
        row = rows(x, slice(int(bad[0]), int(bad[0]) + 1))
        raise AssertionError(f"{name}: {value[bad[0]].item()} at {row}")


def equal(name: str, got: Tensor, wanted: Tensor) -> None:
    """Two tensors are equal bit for bit."""
    same = (got == wanted) | (got.isnan() & wanted.isnan())
    expect(bool(same.all()), f"{name}: differ by up to {_gap(got, wanted)}, expected equal")


def close(name: str, got: Tensor | None, wanted: Tensor, *, skip_nan: bool = False) -> None:
    """Two tensors agree to 1e-9 in float64, to 1e-5 otherwise, NaN where `wanted` is; `skip_nan` leaves these out."""
    if got is None:
        raise AssertionError(f"{name}: is None")
    if skip_nan:
        got, wanted = got[~wanted.isnan()], wanted[~wanted.isnan()]
    tolerance = 1e-9 if wanted.dtype == torch.float64 else 1e-5
    if not torch.allclose(got.to(wanted.dtype), wanted, rtol=tolerance, atol=tolerance, equal_nan=True):
        raise AssertionError(f"{name}: differ by up to {_gap(got, wanted)}")


def _gap(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted.double()).abs().max())
