"""A training run's folder, given where a network is asked for: it opens as the network that the run ended with."""

from __future__ import annotations

import json
import os
from pathlib import Path

_BEGUN, _ENDED = "settings.json", "results.json"  # as `dynabert.distill.pipeline` leaves them


def checked_source(source: object) -> str:
    """``source`` as text; ``TypeError`` for what is neither a folder nor a hub id."""
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(
            f"from_pretrained: a network is given by its folder or hub id; got {source!r} ({type(source).__name__}); "
            "give a str or a path"
        )
    return os.fspath(source)


def network_folder(source: str | os.PathLike[str]) -> str:
    """Where the network is: the last part's folder for a run of ``dynabert train`` (``elastic`` for ``elastic/final``),
    else ``source`` as it is, a folder or a hub id.

    Raises ``OSError``: a run that has not ended, or whose last part is not there.
    """
    given = checked_source(source)
    folder = Path(given)
    if (folder / "config.json").is_file() or not (folder / _BEGUN).is_file():
        return given
    networks = sorted(path.parent.name for path in folder.glob("*/config.json"))
    found = f"networks there: {', '.join(networks) or 'none'}"
    try:
        part = json.loads((folder / _ENDED).read_text(encoding="utf-8"))["parts"][-1]["part"]
    except FileNotFoundError:
        raise OSError(
            f"from_pretrained: {given} is a training run that has not ended; go on with its dynabert train, or give "
            f"the folder of one part; {found}"
        ) from None
    except (ValueError, LookupError, TypeError) as error:
        raise OSError(
            f"from_pretrained: {given} is a training run whose {_ENDED} cannot be read ({error!r}); give the folder of "
            f"one part; {found}"
        ) from error
    if part not in networks:
        raise OSError(f"from_pretrained: {given} is a training run, but its last part, {part}, is not there; {found}")
    return str(folder / part)
