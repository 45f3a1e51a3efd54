#!/usr/bin/env bash
# Makes checkpoints/focusasr-alnum-en: synthetic speech, eight parts of training, measurements, card. About nine hours
# on one core. The corpora must lie in data/ (see focusasr-alnum-en.toml); a broken run goes on where it stopped.
#
#   scripts/focusasr-alnum-en.sh [RUNS]        RUNS: where training writes, runs/ if not given
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
runs=${1:-runs}
export OMP_WAIT_POLICY=PASSIVE

for corpus in an4 fsdd speech_commands_mini picovoice_keywords common_voice_en_delta13 common_voice_en kathleen \
    ljspeech philippm; do
    [[ -f data/$corpus/train.jsonl ]] || { echo "data/$corpus/train.jsonl is missing: see the model card" >&2; exit 1; }
done

python=.venv/bin/python
"$python" scripts/synthesize.py data/synth/home --hours 2 --seed 11
"$python" scripts/synthesize.py data/synth/words --hours 2 --seed 17 --words
"$python" scripts/synthesize.py data/synth/words2 --hours 2 --seed 31 --words
"$python" scripts/synthesize.py data/synth/prose --hours 0.5 --seed 12 \
    --texts data/{common_voice_en_delta13,common_voice_en,kathleen}/train.jsonl

train() {
    local folder=$1 more=()
    shift
    [[ ! -d $folder/last ]] || more=(--resume)
    OMP_NUM_THREADS=1 "$python" -m focusasr train --config scripts/focusasr-alnum-en.toml --output-dir "$folder" \
        "$@" "${more[@]}"
}
train "$runs/alnum-first" --steps 7500 --learning-rate 1.5e-3 --clean-epochs 2
train "$runs/alnum-second" --init-from "$runs/alnum-first/last"
more=(--formant 0.15 --noise 0.3 --speed 0.15)
train "$runs/alnum-third" --init-from "$runs/alnum-second/last" --steps 5000 --seed 3 "${more[@]}"
train "$runs/alnum-fourth" --init-from "$runs/alnum-third/last" --steps 600 --warmup-steps 50 --evaluate-every 300 \
    --learning-rate 5e-4 --ema-decay 0.99 --seed 4 --silence 0.08 "${more[@]}"
mixture=(an4=6 fsdd=4 speech_commands_mini=16 picovoice_keywords=0.15 common_voice_en_delta13=0.8 common_voice_en=1
    kathleen=0.4 ljspeech=0.4 philippm=0.4 synth/home=0.4 synth/words=0.3 synth/words2=0.4 synth/prose=0.1)
mixture=("${mixture[@]/=//train.jsonl=}")
mixture=("${mixture[@]/#/data/}")
train "$runs/alnum-fifth" "${mixture[@]}" --init-from "$runs/alnum-fourth/last" --steps 5500 --evaluate-every 1100 \
    --seed 5 --silence 0.04 "${more[@]}"
train "$runs/alnum-sixth" "${mixture[@]}" --init-from "$runs/alnum-fifth/last" --steps 2800 --evaluate-every 2800 \
    --warmup-steps 100 --learning-rate 7e-4 --seed 6 --silence 0.04 "${more[@]}"
"$python" scripts/cut_words.py data/cut --checkpoint "$runs/alnum-sixth/last" \
    data/{common_voice_en_delta13,common_voice_en,kathleen,ljspeech,philippm}/train.jsonl
real=(an4=6 fsdd=4 speech_commands_mini=16 picovoice_keywords=0.15 common_voice_en_delta13=1 common_voice_en=1
    kathleen=0.5 ljspeech=0.8 philippm=0.8)
real=("${real[@]/=//train.jsonl=}")
real=("${real[@]/#/data/}")
train "$runs/alnum-seventh" "${real[@]}" data/cut/home.jsonl=4 data/cut/other.jsonl=0.5 \
    --init-from "$runs/alnum-sixth/last" --steps 4800 --evaluate-every 1600 --learning-rate 8e-4 --seed 7 \
    --silence 0.04 --microphone 0.25 "${more[@]}"
"$python" scripts/average.py "$runs/alnum-mean" "$runs/alnum-sixth/last=0.7" "$runs/alnum-seventh/last=0.3"

# The eighth part: five runs on all kinds of speech, words and pauses cut out of it, each from the mean of those before
# that had the fewest errors on dev, and the mean of the last three. The first one stopped once and began anew.
"$python" scripts/cut_words.py data/cut --checkpoint "$runs/alnum-mean" \
    data/{common_voice_en_delta13,common_voice_en,kathleen,ljspeech,philippm}/train.jsonl
"$python" scripts/cut_noise.py data/noise \
    data/{an4,common_voice_en_delta13,common_voice_en,kathleen,ljspeech,philippm,fsdd,speech_commands_mini}/train.jsonl
mean() { "$python" scripts/average.py "$runs/$1" "${@:2}"; }
eighth() {  # NAME FROM, weights of an4, fsdd, speech_commands_mini and synthetic words, and more manifests and options
    local mixture=(an4=$3 fsdd=$4 speech_commands_mini=$5 picovoice_keywords=0.15 common_voice_en_delta13=0.8
        common_voice_en=1 kathleen=0.4 ljspeech=0.6 philippm=0.6 synth/words=$6 synth/words2=$6)
    mixture=("${mixture[@]/=//train.jsonl=}")
    mixture=("${mixture[@]/#/data/}")
    train "$runs/$1" "${mixture[@]}" --init-from "$2" --formant 0.15 "${@:7}"
}
home=data/synth/home/train.jsonl
cut=(data/cut/home.jsonl=3 data/cut/other.jsonl=0.3)
eighth alnum-8a "$runs/alnum-mean" 6 5 16 0.3 "${cut[@]}" $home=0.3 data/synth/prose/train.jsonl=0.1 --steps 5000 \
    --seed 10 --learning-rate 8e-4 --silence 0.04 --microphone 0.25 --noise 0.3 --speed 0.15
eighth alnum-8b "$runs/alnum-mean" 6 5 16 0.2 data/cut/home.jsonl=4 data/cut/other.jsonl=0.4 --steps 4000 \
    --seed 11 --learning-rate 6e-4 --silence 0.04 --microphone 0.3 --noise 0.5 --speed 0.17
mean alnum-half "$runs/alnum-mean" "$runs/alnum-8a/last"
quiet=(--silence 0.06 --noise-folder data/noise --microphone 0.25 --speed 0.15)
eighth alnum-8c "$runs/alnum-half" 6 6 16 0.3 "${cut[@]}" $home=0.3 --steps 4500 --seed 12 --learning-rate 7e-4 \
    --noise 0.35 "${quiet[@]}"
mean alnum-third "$runs/alnum-mean=0.7" "$runs/alnum-8a/last=0.3"
eighth alnum-8d "$runs/alnum-third" 7 9 20 0.3 "${cut[@]}" --steps 2500 --seed 13 --learning-rate 6e-4 \
    --noise 0.3 "${quiet[@]}"
mean alnum-three "$runs/alnum-mean" "$runs/alnum-8b/last" "$runs/alnum-8c/last=2"
eighth alnum-8e "$runs/alnum-three" 6 8 16 0.3 "${cut[@]}" $home=0.2 --steps 4200 --seed 14 --learning-rate 6e-4 \
    --noise 0.3 "${quiet[@]}"
mean alnum "$runs/alnum-8c/last" "$runs/alnum-8d/last" "$runs/alnum-8e/last"

"$python" scripts/digit_strings.py data/fsdd data/digit_strings
"$python" scripts/ship_checkpoint.py "$runs/alnum" checkpoints/focusasr-alnum-en scripts/focusasr-alnum-en.md \
    data/{an4,fsdd,digit_strings,speech_commands_mini,picovoice_keywords,misc_en,common_voice_en_delta13,common_voice_en,kathleen,ljspeech,philippm,longform_en}/test.jsonl \
    data/ljspeech/longform.jsonl
