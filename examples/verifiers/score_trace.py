"""One trace scored by verifiers with rlt's reward, without a GPU. Usage: RLT_URL=... score_trace.py PROMPTS.jsonl EXPLANATION

Runs in verifiers' environment. PROMPTS.jsonl is what `python -m rlt.integrations.prompts --kind messages` wrote, EXPLANATION a
text for its first problem, closing tag included. In training, prime-rl samples it and the trace has its tokens and log-probs.
"""

import asyncio
import sys

from verifiers.v1.configs.agent import AgentConfig
from verifiers.v1.graph import prepare_turn
from verifiers.v1.trace import AgentInfo, ModelCall, Trace, TraceTask
from verifiers.v1.types import AssistantMessage, Response, UserMessage

from rlt.integrations.verifiers import TeacherConfig, TeacherTaskset

task = next(iter(TeacherTaskset(TeacherConfig(data=sys.argv[1]))))
trace = Trace(task=TraceTask(type="TeacherTask", data=task.data), agent=AgentInfo(config=AgentConfig()))
said = AssistantMessage(content=sys.argv[2])
response = Response(id="0", created=0, model="teacher", message=said, finish_reason="stop")
node = prepare_turn(trace, [UserMessage(content=task.data.prompt)]).commit(response)
trace.calls.append(ModelCall(node=node))
asyncio.run(task.score(trace))
print({name: reward.value for name, reward in trace.rewards.items()}, trace.metrics)
