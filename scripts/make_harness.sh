#!/usr/bin/env bash
# Makes .venv-harness: lm-evaluation-harness and inspect_ai's log reader on top of .venv's packages, without their pins.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=.venv-harness
python=$folder/bin/python
[ -f "$folder/complete" ] && exit 0
"${PYTHON:-python3}" -m venv "$folder"
.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
  > "$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/rlt.pth"
"$python" -m pip install --quiet --disable-pip-version-check --no-deps lm-eval==0.4.13 inspect-ai==0.3.285 \
  evaluate sqlitedict jsonlines word2number more_itertools pytablewriter DataProperty mbstrdecoder pathvalidate tabledata \
  tcolorpy typepy sacrebleu portalocker tabulate colorama lxml rouge-score absl-py nltk scikit-learn scipy joblib threadpoolctl \
  ijson jsonpatch jsonpointer jsonref jsonpath-ng semver shortuuid sniffio tenacity zipfile-zstd zipp zstandard \
  universal-pathlib pathlib-abc nest-asyncio2 docstring-parser mmh3 python-dotenv beautifulsoup4 soupsieve platformdirs \
  s3fs aiobotocore agent-client-protocol tiktoken textual mdit-py-plugins linkify-it-py uc-micro-py boto3 botocore aioitertools \
  jmespath wrapt s3transfer debugpy httpx httpcore
"$python" -c 'import lm_eval.tasks; from inspect_ai.log import read_eval_log'
touch "$folder/complete"
