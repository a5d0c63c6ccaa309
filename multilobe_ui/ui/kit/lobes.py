"""The lobes there are, as the page shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...app.studio import Studio


def colours_of(studio: Studio) -> dict[str, str]:
    """Name → colour of every lobe."""
    return {lobe.name: lobe.colour for lobe in studio.desk().lobes()}


def usable_lobes(studio: Studio) -> list[tuple[str, str]]:
    """(name, colour) of the lobes that can answer."""
    return [(lobe.name, lobe.colour) for lobe in studio.desk().lobes() if lobe.usable]
