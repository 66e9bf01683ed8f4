"""Serves a model with llama.cpp's own server on a free port of loopback: ``python -m serve_model FILE [endless]``.

Runs in an environment that has ``xllamacpp``. It tells its address, and serves until it is killed.
"""

from __future__ import annotations

import signal
import sys

import xllamacpp


def main(path: str, endless: bool) -> None:
    """Serve. Without other wishes of the request, tokens are drawn as the model weighs them, always with one seed."""
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.model_alias = {"tiny"}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_predict = 30_000 if endless else 2000
    params.sampling.ignore_eos = endless
    params.n_parallel = 2
    params.n_ctx = params.n_parallel << 15
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.sampling.seed = 7
    params.sampling.temp, params.sampling.top_k, params.sampling.top_p, params.sampling.min_p = 1.0, 0, 1.0, 0.0
    # What is in the cache may be a little off, by the order of sums, and answers shall not depend on that.
    params.cache_prompt = False
    params.endpoint_slots = params.endpoint_metrics = True
    params.ui = params.warmup = False
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    signal.pause()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:] == ["endless"])
