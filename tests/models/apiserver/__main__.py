"""`python -m tests.models.apiserver --port 8001`: serve until interrupted; prints the kubeconfig's path."""

from __future__ import annotations

import argparse
import signal

from . import ApiServer


def main() -> None:
    parser = argparse.ArgumentParser(prog="apiserver", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=0, help="0 = any")
    parser.add_argument("--bookmarks", type=float, default=60.0, help="seconds between bookmarks of a watch")
    parser.add_argument("--tls", action="store_true", help="https: kubectl sends no token without it")
    options = parser.parse_args()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    with ApiServer(host=options.host, port=options.port, bookmarks=options.bookmarks, tls=options.tls) as server:
        print(f"{server.url} KUBECONFIG={server.kubeconfig}", flush=True)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    main()
