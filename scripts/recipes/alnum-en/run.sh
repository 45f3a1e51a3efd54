#!/usr/bin/env bash
# Makes checkpoints/focusasr-alnum-en: synthetic speech, one training of two parts, measurements, card. Two and a half
# hours on two cores with AVX-512. The corpora must lie in data/ (see focusasr-alnum-en.toml); a broken run goes on where
# it stopped.
#
#   scripts/recipes/alnum-en/run.sh [FOLDER]        FOLDER: where training writes, runs/alnum if not given
set -euo pipefail
unset CDPATH
run=${1:+$(realpath -m "$1")}
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
run=${run:-runs/alnum}
export OMP_WAIT_POLICY=PASSIVE

for corpus in an4 fsdd speech_commands_mini picovoice_keywords common_voice_en_delta13 common_voice_en kathleen \
    ljspeech philippm; do
    [[ -f data/$corpus/train.jsonl ]] || { echo "data/$corpus/train.jsonl is missing: see the model card" >&2; exit 1; }
done

python=.venv/bin/python
"$python" scripts/recipes/synthesize.py data/synth/home --hours 2 --seed 11
"$python" scripts/recipes/synthesize.py data/synth/words --hours 2 --seed 17 --words
"$python" scripts/recipes/synthesize.py data/synth/words2 --hours 2 --seed 31 --words
"$python" scripts/recipes/synthesize.py data/synth/prose --hours 0.5 --seed 12 \
    --texts data/{common_voice_en_delta13,common_voice_en,kathleen}/train.jsonl
"$python" scripts/recipes/cut_noise.py data/noise \
    data/{an4,common_voice_en_delta13,common_voice_en,kathleen,ljspeech,philippm,fsdd,speech_commands_mini}/train.jsonl

train() {
    local resume=()
    [[ ! -d $run/last ]] || resume=(--resume)
    OMP_NUM_THREADS=1 .venv/bin/torchrun --nproc-per-node 2 -m focusasr train --config scripts/recipes/alnum-en/config.toml \
        --output-dir "$run" "$@" "${resume[@]}"
}
# The first part, at a constant rate, has no words cut out of sentences yet: it is what finds them.
if [[ ! -f $run/cut ]]; then
    mapfile -t uncut < <(sed -n 's|^ *"../../../\(data/.*/train.jsonl.*\)",$|\1|p' scripts/recipes/alnum-en/config.toml)
    train "${uncut[@]}" --steps 5000 --final-rate 1
    "$python" scripts/recipes/cut_words.py data/cut --checkpoint "$run/last" \
        data/{common_voice_en_delta13,common_voice_en,kathleen,ljspeech,philippm}/train.jsonl
    touch "$run/cut"
fi
train

"$python" scripts/recipes/digit_strings.py data/fsdd data/digit_strings
"$python" scripts/recipes/ship.py "$run/last" checkpoints/focusasr-alnum-en scripts/recipes/alnum-en/card.md \
    data/{an4,fsdd,digit_strings,speech_commands_mini,picovoice_keywords,misc_en,common_voice_en_delta13,common_voice_en,kathleen,ljspeech,philippm,longform_en}/test.jsonl \
    data/ljspeech/longform.jsonl
