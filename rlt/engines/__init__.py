"""The engines behind `rlt.generation.build_engine`."""
