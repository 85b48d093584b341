"""A student behind a real vLLM server scores as the same weights do in this process."""

import pytest
from byte_models import byte_tokenizer, save, tiny_model

from rlt.config import ModelOptions, RewardOptions, StudentOptions
from rlt.errors import ServerError
from rlt.reward.scoring import RewardEngine
from rlt.reward.students import LocalModel, load_students, open_students
from rlt.text.formats import load_format
from rlt.types import Problem

pytestmark = pytest.mark.server


def test_rewards_are_those_of_the_student_in_this_process(vllm_server):
    fmt = load_format("stratos").model_copy(update={"teacher_system_prompt": None, "student_system_prompt": None})
    options = RewardOptions(score_temperature=1.0)
    place = StudentOptions(student=[vllm_server.url])
    opened = open_students(fmt, ModelOptions(), place, options)
    (served,) = load_students(opened, ModelOptions(), place)
    local = LocalModel.load(str(vllm_server.model), fmt, ModelOptions(dtype="float32"), StudentOptions())
    texts = ("So 5, é 😀", "Add.\n\nthen" + fmt.tags.explanation.close)
    items = [fmt.completed(Problem(str(i), "What?", "It is 5."), text) for i, text in enumerate(texts)]
    assert served.tokenizer.get_vocab() == byte_tokenizer().get_vocab()
    one, two = (RewardEngine([student], fmt, options, local).score(items) for student in (served, local))
    for ours, theirs in zip(one, two, strict=True):
        assert ours.parts.error is None
        assert ours.parts.reward == pytest.approx(theirs.parts.reward, abs=5e-3)
        assert ours.parts.explanation_tokens == theirs.parts.explanation_tokens


def test_another_tokenizer_is_refused_and_a_row_that_the_server_refuses_fails_alone(vllm_server, tmp_path):
    fmt = load_format("stratos").model_copy(update={"teacher_system_prompt": None, "student_system_prompt": None})
    options = RewardOptions(score_temperature=1.0)
    other = byte_tokenizer(vocabulary=300)
    folder = save(tmp_path, tiny_model(other, 0), other)
    with pytest.raises(ServerError, match="whose tokenizer differs from that of"):
        open_students(fmt, ModelOptions(), StudentOptions(student=[f"{vllm_server.url}#{folder}"]), options)
    place = StudentOptions(student=[vllm_server.url])
    opened = open_students(fmt, ModelOptions(), place, options)
    (served,) = load_students(opened, ModelOptions(), place)
    served.context = None  # so that only the server knows that the second row is too long for it
    items = [fmt.completed(Problem(str(i), "What?", "It is 5."), "So. " * n) for i, n in enumerate((1, 4000, 2))]
    rows = RewardEngine([served], fmt, options).score(items)
    served.close()
    assert [row.parts.error is None for row in rows] == [True, False, True]
    assert "it answers 400" in rows[1].parts.error
