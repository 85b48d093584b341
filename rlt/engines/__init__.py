"""The engines behind `rlt.engines.build.build_engine`.

A trap: vLLM 0.32 on a CPU ends ("CPU Generator does not use offset") when a request with a seed does not fit whole into
one step of prefilling. Such an engine gets no seeds, and its rows have none, unless `send_seeds` says otherwise (the
server runs with `--no-enable-chunked-prefill`, say).
"""
