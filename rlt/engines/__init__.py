"""The engines behind `rlt.engines.build.build_engine`.

On a CPU, vLLM 0.32 crashes ("CPU Generator does not use offset") if a request with a seed does not fit into one prefill
step. Such an engine therefore gets no seeds, and its rows record none, unless `send_seeds` is true (for example, for a
server started with `--no-enable-chunked-prefill`).
"""
