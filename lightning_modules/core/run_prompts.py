"""What a run's data put in front of texts."""

from collections.abc import Mapping
from typing import Any


def sources_of(data: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the sources of pairs by name, each with its path; one alone has the name ''."""
    given = data.get("sources") or {"": data.get("source")}
    return {name: {"path": it} if isinstance(it, str) else it for name, it in given.items() if it}


def prompts_of(data: Mapping[str, Any]) -> dict[str, str]:
    """Return what stood in front of queries and documents; where sources differ, the name of each stands before."""
    found = {}
    for name, source in sources_of(data).items():
        given = source.get("prompts") or {}
        found[name] = {"query": given.get("anchor") or "", "document": given.get("positive") or ""}
    alike = all(prompts == next(iter(found.values())) for prompts in found.values())
    named = {f"{name}_{role}" if not alike else role: p for name, own in found.items() for role, p in own.items()}
    return named if any(named.values()) else {}
