"""Word error rates, their uncertainty, and attention statistics.

WER = (substitutions + deletions + insertions) / words of the reference, over all utterances together, as jiwer and
Kaldi count. It may exceed 100 %. `evaluate` uses `transcription`, so the measured text is the text that users get.

1. Name the normalizer. `basic` drops case and punctuation, `english` is Whisper's (it turns "one two three" into the
   single word 123), `none` changes nothing. Rates under different normalizers are different measures.
2. Give the interval. 104 utterances cannot distinguish 3.8 % from 5 %. The bootstrap samples whole utterances, or
   speakers if twenty or more are named, since errors of one voice are correlated. With fewer speakers, new voices vary
   more than the interval shows. One utterance has no interval.
3. Compare on the same samples. `--against` gives the difference, its interval and the probability that this system is
   better. Overlapping intervals do not show equality, and a lower rate alone does not show a better system.
4. Look at groups (`--slice`) and at single utterances (`--html`). A good mean can hide a group that fails.
5. Measure silence too. An empty reference adds its insertions and no words, as in jiwer 4. The silence line counts
   inserted words per minute without speech, which no WER shows.
6. Choose on dev, report test once, and count failures: an unreadable file is in no rate, and the exit status is 1.

Reading order: wer, bootstrap, evaluate, analysis, hypotheses, attention_stats.
"""
