"""Students: what a server cannot do is refused, and what it answers is read token by token."""

import pytest
import torch
from byte_models import byte_tokenizer, tiny_model

from rlt.config import AccuracyConfig, ModelOptions, RewardOptions, StudentOptions
from rlt.engines.client import PROBE
from rlt.errors import ConfigError, ModelError, ScoringError, ServerError
from rlt.models import loading
from rlt.models.logprobs import Row
from rlt.reward import students
from rlt.reward.students import LocalModel, ServedStudent, open_students
from rlt.text.formats import load_format

FMT = load_format("stratos")
TOKENIZER = byte_tokenizer()
ROWS = [Row([i, i + 1, i + 2], [range(1, 3)]) for i in range(5, 15)]


def logprobs_of(ids):
    """What vLLM answers for a prompt; here each token's log-prob is minus its position."""
    return [None] + [{str(token): {"logprob": -float(i)}} for i, token in enumerate(ids) if i]


class Answers:
    """A server; `answer(ids)` gives its `prompt_logprobs`, or raises."""

    url = "http://127.0.0.1:1/v1"

    def __init__(self, answer=logprobs_of, there=True):
        self.answer, self.there, self.asked, self.closed = answer, there, [], False

    def request(self, method, path, body):
        assert (method, path, body["max_tokens"], body["prompt_logprobs"]) == ("POST", "completions", 1, 0)
        self.asked.append(body["prompt"])
        return {"choices": [{"prompt_logprobs": self.answer(body["prompt"])}]}

    def text(self, address):
        assert address == f"{self.url}/models"
        return "{}" * self.there

    def close(self):
        self.closed = True


def student_of(server, **options):
    return ServedStudent(server, TOKENIZER, "model", StudentOptions(**options))


def fails_at(first_id, error=ServerError):
    def answer(ids):
        if ids[0] == first_id:
            raise error("it answers 400")
        return logprobs_of(ids)

    return answer


# -- what a server answers ---------------------------------------------------------------------------------------------


def test_log_probs_of_a_served_student_are_those_of_the_kept_tokens():
    rows = [Row([5, 6, 7, 8, 9], [range(1, 2), range(3, 4)]), Row([5, 6, 7], [range(2, 3)])]
    assert [column.tolist() for column in student_of(Answers()).logprobs(rows, 1.0)] == [[-1, -3], [-2]]


def test_a_request_that_fails_costs_its_row_alone():
    seen = []
    results = student_of(Answers(fails_at(8))).logprobs(ROWS, 1.0, lambda rows, tokens: seen.append((rows, tokens)))
    assert [isinstance(result, torch.Tensor) for result in results] == [True] * 3 + [False] + [True] * 6
    assert isinstance(results[3], ScoringError)
    assert "it answers 400" in str(results[3])
    assert seen == [(1, 2)] * 10


def test_a_server_that_is_gone_keeps_what_came_before_and_is_asked_no_more():
    server = Answers(fails_at(8), there=False)
    results = student_of(server, max_in_flight=1).logprobs(ROWS, 1.0)
    assert [isinstance(result, torch.Tensor) for result in results] == [True] * 3 + [False] * 7
    assert all(isinstance(result, ServerError) for result in results[3:])
    assert len(server.asked) <= 6  # the window, twice as many as may be under way, was full when the fourth failed


class WhenAsked:
    """An executor that does its work when a result is wanted, and counts what waits."""

    def __init__(self):
        self.waiting = self.most = 0

    def submit(self, work, *arguments):
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        return type("Future", (), {"result": lambda _: self.done(work(*arguments))})()

    def done(self, value):
        self.waiting -= 1
        return value


def test_only_a_window_of_requests_waits():
    student = student_of(Answers(), max_in_flight=2)
    student._pool = WhenAsked()
    assert len(student.logprobs(ROWS, 1.0)) == 10
    assert student._pool.most == 4


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([None, {"1": {"logprob": -1.0}}, {"2": {"logprob": -1.0}}], "other tokens"),
        (None, "student's server must be vLLM"),
        (3, "must be vLLM"),
        ([None], "1 for 3 tokens"),
        ([None, None, None], "must be vLLM"),
        ([None, "6", "7"], "must be vLLM"),
        ([None, {"6": None}, {"7": None}], "other tokens"),
        ([None, {"6": {}}, {"7": {}}], "must be vLLM"),
        ([None, {"6": {"logprob": "low"}}, {"7": {"logprob": -1.0}}], "must be vLLM"),
    ],
)
def test_an_answer_that_cannot_be_read_is_that_rows_error(given, words):
    (result,) = student_of(Answers(lambda ids: given)).logprobs(ROWS[:1], 1.0)
    assert isinstance(result, ScoringError)
    assert words in str(result)


def test_a_log_prob_that_is_null_is_nan():
    given = [None, {"6": {"logprob": None}}, {"7": {"logprob": -1.0}}]
    (result,) = student_of(Answers(lambda ids: given)).logprobs(ROWS[:1], 1.0)
    assert result.isnan().tolist() == [True, False]


def test_an_interrupted_call_closes_the_connections():
    server = Answers(fails_at(6, KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        student_of(server).logprobs(ROWS, 1.0)
    assert server.closed


def test_what_a_server_cannot_do_is_refused_with_the_reason():
    student = student_of(Answers())
    student.check(RewardOptions(score_temperature=1.0).resolved())
    with pytest.raises(ConfigError, match="only at temperature 1"):
        student.check(RewardOptions().resolved())
    with pytest.raises(ConfigError, match="whole next-token distributions"):
        student.check(RewardOptions(preset="paper").resolved())


# -- which server ------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(monkeypatch):
    """The arguments with which a server was opened, and what it serves."""

    class Fake:
        def __init__(self, url, key, **options):
            state.update(url=url, key=key, options=options)
            self.url = url

        def request(self, method, path, body=None):
            if path == "models":
                return {"data": state["models"]}
            assert path == "http://host/tokenize"
            return {"tokens": state["tokenizer"].encode(body["prompt"], add_special_tokens=False)}

        def clean(self, text):
            return text

        def close(self):
            state["closed"] = True

    state = {
        "models": [{"id": "tiny", "root": "/models/tiny", "owned_by": "vllm", "max_model_len": 99}],
        "tokenizer": TOKENIZER,
        "closed": False,
    }
    monkeypatch.setattr(students, "Client", Fake)
    monkeypatch.setattr(students, "checked_tokenizer", lambda path, *_: state.update(path=path) or TOKENIZER)
    return state


def connect(address="http://host/v1", **options):
    return ServedStudent.connect(address, FMT, ModelOptions(), StudentOptions(**options))


def test_a_server_tells_its_model_its_tokenizers_folder_and_its_context(server):
    student = connect()
    assert (student.model, student.context, server["path"]) == ("tiny", 99, "/models/tiny")
    student = connect("http://host/v1#my/folder")
    assert (student.name, server["url"], server["path"]) == ("http://host/v1#my/folder", "http://host/v1", "my/folder")


def test_no_key_is_sent_unless_its_variable_is_named(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    connect(timeout=5, retry_for=7, max_in_flight=2)
    assert (server["key"], server["options"]) == (None, {"timeout": 5, "retry_for": 7, "max_in_flight": 2})
    connect(student_api_key_env="MY_KEY")
    assert server["key"] == "MY_KEY"


def test_another_tokenizer_than_the_served_models_is_refused(server):
    server["tokenizer"] = byte_tokenizer(vocabulary=280)
    assert server["tokenizer"].encode(PROBE) != TOKENIZER.encode(PROBE)
    with pytest.raises(ServerError, match="whose tokenizer differs from that of"):
        connect()
    assert server["closed"]


def test_of_several_models_one_must_be_named(server):
    server["models"] = [{"id": name, "owned_by": "vllm"} for name in ("one", "two")]
    with pytest.raises(ServerError, match="serves one, two"):
        connect()
    assert connect(served_model="two").model == "two"
    with pytest.raises(ServerError, match="not 'three'"):
        connect(served_model="three")


def test_a_server_that_is_not_vllm_is_refused(server):
    server["models"][0]["owned_by"] = "someone"
    with pytest.raises(ServerError, match="must be vLLM"):
        connect()


def test_servers_are_closed_when_another_student_is_refused(server):
    options = StudentOptions(student=["http://host/v1"])
    with pytest.raises(ConfigError, match="only at temperature 1"):
        open_students(FMT, ModelOptions(), options, RewardOptions())
    assert server["closed"]


# -- students in this process ------------------------------------------------------------------------------------------


def test_the_same_student_twice_or_none_is_refused():
    for student, words in (([], "name at least one"), (["a", "a"], "listed twice")):
        with pytest.raises(ConfigError, match=words):
            open_students(FMT, ModelOptions(), StudentOptions(student=student), RewardOptions())


@pytest.mark.parametrize(
    ("reward", "words"),
    [(RewardOptions(estimator="exact"), "`exact`"), (RewardOptions(accuracy=AccuracyConfig()), "accuracy reward")],
)
def test_what_ranks_cannot_do_together_is_refused_before_any_file_is_read(reward, words):
    options = StudentOptions(student=["no/such/folder"], student_placement="sharded")
    with pytest.raises(ConfigError, match=words):
        open_students(FMT, ModelOptions(), options, reward)
    with pytest.raises(ConfigError, match=words):
        LocalModel(tiny_model(TOKENIZER, 0), TOKENIZER, placement="sharded").check(reward)


def test_an_unknown_task_of_the_accuracy_reward_is_refused_first():
    reward = RewardOptions(accuracy=AccuracyConfig(task="maths"))
    with pytest.raises(ConfigError, match="did you mean math"):
        open_students(FMT, ModelOptions(), StudentOptions(student=["no/such/folder"]), reward)


def test_what_is_no_model_is_refused():
    with pytest.raises(ModelError, match="not a model folder"):
        open_students(FMT, ModelOptions(), StudentOptions(student=["./no/such/folder"]), RewardOptions())


def test_an_offloaded_model_is_back_where_it_was(monkeypatch):
    student = LocalModel(tiny_model(TOKENIZER, 0), TOKENIZER, placement="offload")
    monkeypatch.setattr(loading, "default_device", lambda: torch.device("meta"))
    monkeypatch.setattr(student.model, "to", lambda device: moves.append(torch.device(device).type))
    moves: list[str] = []
    with student.in_place():
        pass
    assert moves == ["meta", "cpu"]
