"""Run a training stage under `accelerate launch`, in as many processes as its configuration says.

Network: on one machine, the processes talk over the loopback interface only. The store through which they find each
other listens on 127.0.0.1 (torch's own listens on every address of the machine), and so do the sockets of gloo and NCCL.
With several machines (`num_machines`), or if the configuration sets `main_process_ip` or an `rdzv_backend` other than
`static`, accelerate and torch decide: the store then listens on every address of the first machine.
`GLOO_SOCKET_IFNAME` and `NCCL_SOCKET_IFNAME` in the environment take precedence. If they are not set, NCCL still chooses
its own interface when weights go to a vLLM server, which may be on another machine.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rlt.config import StageConfig
from rlt.config.launch import launch_file, launch_options
from rlt.data.rows import write_text
from rlt.errors import DependencyError, RunError
from rlt.outputs import Result, begin, complete_state
from rlt.types import JsonMap

LOOPBACK = "127.0.0.1"


def launch_stage(stage: str, config: StageConfig) -> Result:
    """The stage's Result, after `accelerate launch` ran it in its own processes. No shell is involved.

    Raises ConfigError for an unknown `launch`, DependencyError if it needs a package that is not installed, RunError if
    the processes fail.
    """
    name = getattr(config, "launch", None) or "single"
    accelerate = launch_file(name)
    options = launch_options(accelerate)
    if options.get("distributed_type") == "DEEPSPEED" and importlib.util.find_spec("deepspeed") is None:
        raise DependencyError(f"`launch`: {name!r} needs DeepSpeed: pip install 'rlt[deepspeed]'")
    output = Path(config.output)
    done = begin(stage, config).result if complete_state(output) else None
    if done is not None:
        return done
    request = output.parent / f".{output.name}.launch.json"
    write_text(request, config.model_copy(update={"launch": None}).model_dump_json())
    command = [sys.executable, "-m", "rlt.launching", "launch", "--config_file", str(accelerate)]
    command += [*processes(accelerate), *rendezvous(options), "-m", "rlt.launching", stage, str(request)]
    try:
        status = subprocess.run(command, check=False, env=environment(config, options)).returncode
    finally:
        request.unlink(missing_ok=True)
    state = complete_state(output)
    if status != 0 or state is None:
        from rlt.training.checkpoints import last_checkpoint

        saved = last_checkpoint(output)
        again = f"resumes from {saved.name}" if saved else "starts from scratch: no checkpoint was saved"
        raise RunError(f"{stage}: its processes exited with status {status}. The same command {again}.")
    return Result(output, state["metrics"])


def processes(accelerate: Path) -> list[str]:
    """accelerate's flag for one process per visible GPU, if its configuration sets no number; otherwise no flag."""
    import torch

    if launch_options(accelerate).get("num_processes") is not None:
        return []
    return ["--num_processes", str(max(1, torch.cuda.device_count()))]


# -- who listens where ---------------------------------------------------------------------------------------------------------


def on_this_machine(options: JsonMap) -> bool:
    """Whether an accelerate configuration is for one machine and leaves the rendezvous to rlt."""
    several = str(options.get("num_machines") or 1) != "1"
    # `static` is what `accelerate config` writes by default.
    return not several and not options.get("main_process_ip") and options.get("rdzv_backend", "static") == "static"


def rendezvous(options: JsonMap) -> list[str]:
    """accelerate's flags for a store on 127.0.0.1 at a free port (0 keeps accelerate from choosing one itself)."""
    return ["--rdzv_backend", "loopback", "--main_process_port", "0"] if on_this_machine(options) else []


def environment(config: StageConfig, options: JsonMap) -> dict[str, str]:
    """This process's environment, changed so that processes of one machine talk over its loopback interface."""
    here: dict[str, str] = {}
    names = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]
    if on_this_machine(options) and names:
        here["GLOO_SOCKET_IFNAME"] = names[0]
        trainer = getattr(config, "trainer", {})
        if not (trainer.get("use_vllm") and trainer.get("vllm_mode") == "server"):
            here["NCCL_SOCKET_IFNAME"] = names[0]
    return {**here, **os.environ}


def _launch(arguments: Sequence[str]) -> None:
    """`accelerate launch`, in this process, with `loopback` among torch's kinds of rendezvous."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed import TCPStore
    from torch.distributed.elastic.rendezvous import RendezvousInfo, rendezvous_handler_registry
    from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous

    class Loopback(StaticTCPRendezvous):
        """torch's static rendezvous with a store on our own socket; torch's listens on every address."""

        def get_backend(self) -> str:
            return "loopback"

        def next_rendezvous(self) -> RendezvousInfo:
            if self._store is None:
                listener = socket.create_server((LOOPBACK, 0))
                self.master_port = listener.getsockname()[1]
                self._store = TCPStore(
                    LOOPBACK, self.master_port, self.world_size, True, self.timeout, multi_tenant=True,
                    master_listen_fd=listener.detach(),
                )  # fmt: skip
            return super().next_rendezvous()

    rendezvous_handler_registry.register(
        "loopback", lambda wanted: Loopback(LOOPBACK, 0, 0, wanted.max_nodes, wanted.run_id, timeout=600)
    )
    options = launch_command_parser().parse_args(arguments)
    if options.rdzv_backend == "loopback":
        options.rdzv_endpoint = LOOPBACK  # not read, but torch warns if it is missing
    launch_command(options)


# -- what each launched process does -------------------------------------------------------------------------------------------


def main() -> None:
    """Launch with accelerate (`launch ...`), or, in a launched process, run the requested stage (`STAGE FILE`)."""
    if sys.argv[1] == "launch":
        return _launch(sys.argv[2:])
    from rlt.errors import guarded

    stage, request = sys.argv[1:]
    sys.exit(guarded(lambda: _run(stage, Path(request))))


def _run(stage: str, request: Path) -> int:
    from rlt.config import STAGES

    result = importlib.import_module(f"rlt.stages.{stage}").run(
        STAGES[stage].model_validate_json(request.read_text(encoding="utf-8"))
    )
    return int(result.metrics.get("exit_status", 0))


if __name__ == "__main__":
    main()
