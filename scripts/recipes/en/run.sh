#!/usr/bin/env bash
# Makes checkpoints/focusasr-en from OpenAI's tiny.en: texts, adaptation, measurements, card. About six hours on two
# busy cores. The corpora must be in data/ (config.toml names them); an interrupted run resumes.
#
#   scripts/recipes/en/run.sh TINY_EN [FOLDER]    TINY_EN: what --model takes; FOLDER: the run's, runs/en if not given
set -euo pipefail
unset CDPATH
source=${1:?a Whisper tiny.en, in any form that --model takes}
[[ ! -e $source ]] || source=$(realpath "$source")
run=${2:+$(realpath -m "$2")}
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
run=${run:-runs/en}
export OMP_WAIT_POLICY=PASSIVE

mkdir -p data/whisper_style
.venv/bin/python -m focusasr evaluate data/speechocean762/train.jsonl --model "$source" --normalizer english \
    --output data/whisper_style/speechocean762-read.jsonl
.venv/bin/python scripts/recipes/en/texts.py data data/whisper_style data/whisper_style/speechocean762-read.jsonl
resume=()
[[ ! -d $run/last ]] || resume=(--resume)
.venv/bin/python -m focusasr adapt "$source" --config scripts/recipes/en/config.toml --output-dir "$run" "${resume[@]}"

.venv/bin/python scripts/recipes/digit_strings.py data/fsdd data/digit_strings
.venv/bin/python scripts/recipes/ship.py "$run/last" checkpoints/focusasr-en scripts/recipes/en/card.md --dtype int8 \
    data/{misc_en,common_voice_en,common_voice_en_delta13,ljspeech,philippm,kathleen,longform_en,an4,fsdd,digit_strings,speech_commands,picovoice_keywords}/test.jsonl
