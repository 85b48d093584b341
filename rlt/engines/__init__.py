"""The engines behind `rlt.engines.build.build_engine`.

A trap: on a CPU, vLLM 0.32 crashes ("CPU Generator does not use offset") when a request with a seed does not fit into one
prefill step. So such an engine gets no seeds, and its rows record none, unless `send_seeds` is true (for a server that
runs with `--no-enable-chunked-prefill`, say).
"""
