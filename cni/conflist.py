"""Network configurations with our plugin at the end of the chain, as text, and without it again. Pure.

A configuration of one plugin (.conf, .json) becomes a list, as the specification makes one of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from cni.wire import CHAINED, IPAM

VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")  # of routerd-cni.c; before 0.3.0 there are no chains
Json = dict[str, Any]


class NotChainable(Exception):
    """Why nothing can be chained there, one line."""


def parsed(text: str) -> Json:
    """A configuration as a list of plugins. Raises NotChainable."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise NotChainable(f"it is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise NotChainable("it is no JSON object")
    network = found if "plugins" in found or "type" not in found else _list_of(found)
    plugins = network.get("plugins")
    if not isinstance(plugins, list) or not all(isinstance(each, dict) and each.get("type") for each in plugins):
        raise NotChainable("its plugins are no list of objects with a type")
    return network


def _list_of(plugin: Json) -> Json:
    whole: Json = {key: plugin[key] for key in ("cniVersion", "name") if key in plugin}
    return {**whole, "plugins": [{key: value for key, value in plugin.items() if key not in whole}]}


def chained(text: str, entry: Mapping[str, Any]) -> str:
    """With `entry` behind all others, or in the place of ours. Raises NotChainable."""
    network = parsed(text)
    plugins = network["plugins"]
    if not any(each["type"] != CHAINED for each in plugins):
        raise NotChainable("it has no main plugin")
    version = network.get("cniVersion", "0.1.0")
    if version not in VERSIONS:
        raise NotChainable(f"it is of CNI {version}, and {CHAINED} speaks {', '.join(VERSIONS)}")
    if is_chained(network):
        network["plugins"] = [{**entry} if each["type"] == CHAINED else each for each in plugins]
    else:
        network["plugins"] = [*plugins, {**entry}]
    return rendered(network)


def whole(ipam: Mapping[str, Any], entry: Mapping[str, Any]) -> Json:
    """A configuration of our own, whose pods have addresses of the agent's. Never `bridge`: its connected route
    captures the subnet of a cloud's interface.
    """
    plugins = [
        {"type": "ptp", "ipMasq": False, "ipam": {"type": IPAM, **ipam}},
        {"type": "portmap", "capabilities": {"portMappings": True}},
        {**entry},
    ]
    return {"cniVersion": "1.0.0", "name": "pods", "plugins": plugins}


def is_chained(network: Json) -> bool:
    return any(each["type"] == CHAINED for each in network["plugins"])


def gives_addresses(network: Json) -> bool:
    """Whether a plugin of it asks us for addresses."""
    sections = (each.get("ipam") for each in network["plugins"])
    return any(isinstance(section, dict) and section.get("type") == IPAM for section in sections)


def unchained(network: Json) -> Json:
    return {**network, "plugins": [each for each in network["plugins"] if each["type"] != CHAINED]}


def rendered(network: Json) -> str:
    return json.dumps(network, indent=2, ensure_ascii=False) + "\n"
