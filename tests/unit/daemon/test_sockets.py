"""An agent that cannot have all of its sockets leaves none behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from routerd.config import parse_config
from routerd.daemon import processes
from routerd.daemon.lifetime import ConfigSource
from routerd.errors import EnvironmentFault
from routerd.serve.api import ApiServer, agent_socket
from routerd.serve.plugin import ipam_socket, plugin_socket

CONFIG = """\
apiVersion: routerd.io/v1alpha1
kind: Config
node-name: a
store: {{manifests: {0}}}
state-dir: {0}/state
run-dir: {0}/run
metrics-listen: ""
egress: {{enabled: false}}
bgp: {{enabled: false}}
"""


@pytest.mark.parametrize("taken", [plugin_socket, ipam_socket])
def test_what_was_opened_is_closed_where_the_next_one_cannot_be(taken: Callable[[Path], Path], tmp_path: Path) -> None:
    config = parse_config(CONFIG.format(tmp_path))

    async def story() -> None:
        async with ApiServer(taken(config.run_dir), lambda _: None):
            with pytest.raises(EnvironmentFault, match="another process answers"):
                await processes.agent(config, ConfigSource())
            assert sorted(config.run_dir.glob("*.sock")) == [taken(config.run_dir)]
        assert not agent_socket(config.run_dir).exists()

    asyncio.run(story())
