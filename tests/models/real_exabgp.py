"""The installed ExaBGP as a library: its configuration and its command parser, for tests. Opens no session."""

from __future__ import annotations

import json

from exabgp.configuration.configuration import Configuration
from exabgp.environment import getenv
from exabgp.logger import log
from exabgp.reactor.api import API
from exabgp.reactor.api.command.limit import extract_neighbors, match_neighbors

from bgp import relay
from bgp.inside import patches

getenv().log.enable = False
log.init(getenv())
patches.mend_parser()


def loaded(peers: str) -> Configuration:
    """The configuration that ExaBGP makes of the text of the peers."""
    configuration = Configuration([relay.configuration_text("/bin/sh", "/bin/sh", peers)], text=True)
    assert configuration.reload() is True, configuration.error
    return configuration


def told(configuration: Configuration, command: str) -> list[str]:
    """What ExaBGP would hold after an announcement, as `show adj-rib out json` prints it."""
    descriptions, rest = extract_neighbors(command)
    names = match_neighbors(list(configuration.neighbors), descriptions)
    lines = []
    for change in API(None).api_attributes(rest, names):
        for name in names:
            neighbor = configuration.neighbors[name]
            ends = f"{neighbor['peer-address']},{neighbor['local-address']}"
            row = {"peer": {"address": ends}, "route": neighbor.remove_self(change).as_dict()}
            lines.append(json.dumps(row))
    return lines
