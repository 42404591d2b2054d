#!/usr/bin/env bash
# Measures one model for docs/results/: fidelity, reconstruction, generation and speed of every cache. Takes hours on
# two cores; stopped and started again, it goes on where it was.
#     scripts/study.sh MODEL.gguf NAME DATA [full|brief] [PARTS]
# writes docs/results/NAME.json and .svg and build/study/NAME.md, the tables. DATA is a folder with texts
# (wikitext2-valid.txt, moby-dick.txt, pud-french.txt) and GSM8K (gsm8k-test.jsonl, gsm8k-train-400.jsonl). brief: what
# a model of more than a billion parameters allows. PARTS is a pattern of titles below, all by default. All but the speed
# can run beside other work, on fewer THREADS.
source "$(dirname "$0")/common.sh"

[[ $# -ge 3 ]] || die "usage: scripts/study.sh MODEL.gguf NAME DATA [full|brief] [PARTS]"
model=$1 name=$2 data=$3 plan=${4:-full} parts=${5:-.}
cd "$(dirname "$0")/.."
kvcodec="${KVCODEC:-build/release/tools/kvcodec}"
work=build/study
results=docs/results/$name
artifact="$work/$name.kvc.gguf"
for file in "$kvcodec" "$model" "$data/wikitext2-valid.txt"; do
    [[ -f $file ]] || die "$file is missing"
done
mkdir -p "$work"

own=kvcodec:20%:sinks=4,kvcodec:13.5%:sinks=4
dictionary=kvcodec:codec=dictionary:budget=20%:sinks=4
more=kvcodec:51%:sinks=4,kvcodec:26%:sinks=4,kvcodec:10%:sinks=4,kvcodec:20%:sinks=4:artifact=none
published=kvcodec:codec=dictionary:s=8:layout=published:sinks=4
hosts=q8_0,q8_0/q4_0,q5_1,q4_1,q4_0
quantisers=kvcodec:codec=kivi:bits=2,kvcodec:codec=kivi:bits=4,kvcodec:codec=token:bits=2,kvcodec:codec=token:bits=4
quantisers+=,kvcodec:codec=turboquant:bits=2,kvcodec:codec=turboquant:bits=3,kvcodec:codec=turboquant:bits=4
quantisers+=,kvcodec:codec=zipcache:budget=20%
eviction=kvcodec:codec=h2o:budget=20%,kvcodec:codec=snapkv:budget=20%,kvcodec:codec=pyramidkv:budget=20%

# part TITLE ARGUMENTS...: one call of kvcodec eval, its tables kept.
part() {
    local title=$1 threads="${THREADS:-$(nproc)}"
    shift
    [[ $title =~ $parts ]] || return 0
    [[ $title == Speed* ]] && threads="$(nproc)"
    echo "== $title" >&2
    "$kvcodec" eval -m "$model" -a "$artifact" --threads "$threads" --json "$results.json" "$@" > "$work/part.md"
    { printf '## %s\n\n' "$title"; cat "$work/part.md"; echo; } >> "$work/$name.md"
}

tokens="$([[ $plan == full ]] && echo 16384 || echo 8192)"
[[ -f $artifact ]] || "$kvcodec" train -m "$model" -o "$artifact" --tokens "$tokens" --threads "${THREADS:-$(nproc)}" >&2
: > "$work/$name.md"
wiki=(--text "$data/wikitext2-valid.txt")
problems=(--problems "$data/gsm8k-test.jsonl" --examples "$data/gsm8k-train-400.jsonl")
if [[ $plan == full ]]; then
    part "Context 512" --suite kld "${wiki[@]}" --ctx-size 512 --chunks 8 --together 12 \
        --cache "$hosts,$own,$more,$dictionary,$published,$quantisers"
    part "Context 2048" --suite kld "${wiki[@]}" --ctx-size 2048 --chunks 4 --together 12 --svg "$results.svg" \
        --cache "$hosts,$own,$more,$dictionary,$published,$quantisers,$eviction"
    part "Context 8192" --suite kld "${wiki[@]}" --ctx-size 8192 --chunks 1 --together 10 \
        --cache "q8_0,q4_0,kvcodec:26%:sinks=4,$own,$dictionary,kvcodec:codec=kivi:bits=2,kvcodec:codec=turboquant:bits=3,$eviction"
    part "Reconstruction" --suite recon "${wiki[@]}" --text "$data/moby-dick.txt" --text "$data/pud-french.txt" \
        --ctx-size 2048 --chunks 2 --cache "$own,$dictionary,$published"
    part "GSM8K solutions" --suite solutions "${problems[@]}" --problems-limit 100 --max-tokens 192 --together 8 \
        --cache "q8_0,q4_0,kvcodec:26%:sinks=4,$own,$dictionary,$eviction"
    part "GSM8K" --suite gsm8k --mode live "${problems[@]}" --problems-limit 100 --max-tokens 192 --parallel 16 \
        --cache "$own"
    part "Retrieval" --suite retrieval --ctx-size 1024 --problems-limit 20 --max-tokens 64 \
        --cache "q8_0,q4_0,$own,$eviction"
    part "Needle" --suite needle --text "$data/moby-dick.txt" --ctx-size 512 --ctx-size 1024 --problems-limit 4 \
        --cache "q4_0,$own,$eviction"
    part "Variable tracking and frequent words" --suite ruler --ctx-size 1024 --problems-limit 10 \
        --cache "q4_0,$own,$eviction"
    part "Speed" --suite speed,components --cache "q8_0,q4_0,$own,$dictionary" --depths 0,1024,2048,4096,8192
    part "Speed to 16384" --suite speed --cache "$own" --depths 0,4096,16384 --sequences 0
else
    part "Context 2048" --suite kld "${wiki[@]}" --ctx-size 2048 --chunks 8 --together 8 --svg "$results.svg" \
        --cache "q8_0,$own,kvcodec:20%:sinks=4:artifact=none"
    part "Context 8192" --suite kld "${wiki[@]}" --ctx-size 8192 --chunks 2 --together 8 --cache "$own"
    part "Reconstruction" --suite recon "${wiki[@]}" --text "$data/moby-dick.txt" --text "$data/pud-french.txt" \
        --ctx-size 2048 --chunks 1 --cache "$own,$dictionary"
    part "GSM8K solutions" --suite solutions "${problems[@]}" --problems-limit 200 --max-tokens 96 --parallel 16 \
        --together 8 --cache "$own"
    part "GSM8K" --suite gsm8k --mode live "${problems[@]}" --problems-limit 100 --max-tokens 224 --parallel 16 \
        --cache "$own"
    low_rank="$work/$name.lorc.gguf"
    [[ -f $low_rank || ! "GSM8K with latents" =~ $parts ]] ||
        "$kvcodec" lowrank -m "$model" -o "$low_rank" --keep 60% --basis data --measured \
            --threads "${THREADS:-$(nproc)}" > "$work/lowrank.txt"
    artifact="$low_rank" part "GSM8K with latents" --suite gsm8k --mode live "${problems[@]}" --problems-limit 100 \
        --max-tokens 224 --parallel 16 --cache kvcodec:codec=latent:bits=8,kvcodec:codec=latent:bits=4
    part "Speed" --suite speed,components --cache "q8_0,$own" --depths 0,2048,4096 --sequences 1,4
fi
echo "$work/$name.md"
