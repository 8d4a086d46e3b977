# What the guest of `cargo xtask stress` does. Words in capitals that this file does not set are in front of it.
#
# A piece of work is a function or a class of a suite; it fails by its status. The host reads the lines that begin with
# STRESS: `pass`, `fail` and `left-out` with the name of the piece, and `done` at the end.

work=/tmp/work
sequence=/tmp/sequence
mkdir -p $work && mount -t tmpfs -o size=96m tmpfs $work || exit 1
seq 1 20000 >$sequence

now() { read -r up idle </proc/uptime; echo "${up%.*}"; }
is() { [ "$1" = "$2" ] || { echo "$3 is $1, not $2"; return 1; }; }
sum() { sha256sum | cut -d ' ' -f 1; }

# Of the sequence, computed elsewhere.
digests() {
    is "$(md5sum <$sequence)" "e071f707df7bbeee2a6a1eb48011ddd0  -" md5sum &&
        is "$(sha1sum <$sequence)" "49972ff155d0d5fb6bb9d8f18a7a4c4a2ea9562c  -" sha1sum &&
        is "$(sha256sum <$sequence)" "f6351f5ead9a700e34275480b3856ea738122a7c57bdeb744a631251c069587a  -" sha256sum
}

# The tree does not change: two walks see the same.
tree() {
    find / >/dev/null 2>&1
    ls -lR /proc >/dev/null 2>&1
    find / -xdev | sort | sum >$work/first
    ls -lR /bin /etc /suite | sum >>$work/first
    find / -xdev | sort | sum >$work/second
    ls -lR /bin /etc /suite | sum >>$work/second
    cmp $work/first $work/second
}

archive() {
    mkdir $work/out &&
        tar -cf - /bin/busybox /etc /init $sequence 2>/dev/null | gzip -1 | gunzip | tar -xf - -C $work/out &&
        cmp /bin/busybox $work/out/bin/busybox && cmp /init $work/out/init && cmp $sequence $work/out$sequence
}

bzip() {
    head -c 300000 /bin/busybox >$work/in && bzip2 -k $work/in && bunzip2 -c $work/in.bz2 | cmp - $work/in
}

sorting() {
    awk 'BEGIN { srand('$round') } { print rand() "\t" $0 }' $sequence | sort | cut -f 2 >$work/mixed
    ! cmp -s $work/mixed $sequence && sort -n $work/mixed | cmp - $sequence
}

text() {
    is "$(awk '{ s += $1 } END { printf "%d", s }' $sequence)" 200010000 "the sum" &&
        is "$(grep -c 7 $sequence)" 6878 "the number of lines with a 7" &&
        is "$(sed -n 's/^1\(.*\)9$/\1/p' $sequence | wc -l)" 1111 "the number of lines from 1 to 9"
}

tmpfs() {
    dd if=/dev/urandom bs=64k count=96 2>/dev/null | tee $work/a | sum >$work/sum
    dd if=$work/a of=$work/b bs=4099 2>/dev/null
    dd if=$work/b of=$work/c bs=1M 2>/dev/null
    for copy in a b c; do is "$(sum <$work/$copy)" "$(cat $work/sum)" "the sum of copy $copy" || return 1; done
    mv $work/c $work/d && rm $work/a && cmp $work/b $work/d
}

pipes() { is "$(cat $sequence $sequence $sequence | cat | tr 0-9 a-j | cat | wc -c)" 326682 "the pipe's length"; }

processes() {
    number=0
    while [ $number -lt 150 ]; do number=$(/bin/expr $number + 1) || return 1; done
    for child in 1 2 3 4 5 6 7 8; do (exit $child) & eval "child$child=\$!"; done
    for child in 1 2 3 4 5 6 7 8; do
        eval "wait \$child$child"
        is $? $child "the status of a child" || return 1
    done
}

signals() {
    caught=$(sh -c 'n=0; trap "n=\$((n+1))" USR1; for i in $(seq 1 100); do kill -USR1 $$; done; echo $n')
    is "$caught" 100 "the number of signals caught" || return 1
    for signal in 15 9 1; do
        sleep 1000 &
        kill -$signal $!
        wait $! 2>/dev/null
        is $? $((128 + signal)) "the status of who was killed" || return 1
    done
    sh -c 'while :; do :; done' &
    kill -STOP $! && kill -CONT $! && kill -KILL $!
    wait $! 2>/dev/null
    is $? 137 "the status of who was stopped, resumed and killed"
}

# Classes that share the processor's registers by preemption.
together() {
    jobs=
    for class in nbody matrix sha256 integer string codegen; do
        $USER --millis 100 $class >$work/$class 2>&1 &
        jobs="$jobs $!"
    done
    $LIBRARIES --millis 100 sqlite lua || return 1
    for job in $jobs; do wait $job || { cat $work/*; return 1; }; done
}

# Everything there is, in an order of the round's own.
mix() {
    for class in $USER_CLASSES; do echo "user:$class"; done
    for class in $LIBRARY_CLASSES; do echo "library:$class"; done
    printf '%s\n' $PIECES
}
order() { mix | awk 'BEGIN { srand('$((SEED + round))') } { print rand() "\t" $0 }' | sort | cut -f 2; }

run() {
    case $1 in
        user:*) $USER --millis $MILLIS ${1#*:} ;;
        library:*) $LIBRARIES --millis $MILLIS ${1#*:} ;;
        *) $1 ;;
    esac
}

end=$(($(now) + SECONDS_TO_RUN))
round=0 passed=0 failed=0
while [ "$(now)" -lt $end ]; do
    round=$((round + 1))
    for piece in $(order); do
        [ "$(now)" -lt $end ] || break
        if (run $piece) >/tmp/output 2>&1; then
            if grep -q ' unavailable: ' /tmp/output; then
                echo "STRESS left-out $piece"
            else
                passed=$((passed + 1))
                echo "STRESS pass $piece round $round at $(now) s"
            fi
        else
            status=$?
            failed=$((failed + 1))
            cat /tmp/output
            echo "STRESS fail $piece round $round status $status"
        fi
        rm -rf $work/*
    done
done

# Bits of the kernel that had a warning, an oops or a lockup.
taint=$(($(cat /proc/sys/kernel/tainted) & (1 << 5 | 1 << 7 | 1 << 9 | 1 << 14)))
if [ $taint != 0 ]; then
    failed=$((failed + 1))
    echo "STRESS fail kernel tainted $taint"
fi
echo "STRESS done rounds $round passed $passed failed $failed"
[ $failed = 0 ]
