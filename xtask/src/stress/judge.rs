//! What the console says of a run, and what that means.

use std::collections::BTreeMap;

use crate::console::Ending;

/// Parts of lines in which Linux complains of itself or of what it runs, none of which a sound machine makes it print
/// under work that only does what it may.
const COMPLAINTS: [&str; 18] = [
    "BUG:",
    "kernel BUG at",
    "Oops:",
    "Kernel panic",
    "WARNING: CPU:",
    "Call Trace:",
    "soft lockup",
    "hard LOCKUP",
    "self-detected stall",
    "detected stalls",
    "rcu: INFO:",
    "kthread starved",
    "blocked for more than",
    "general protection fault",
    "segfault at",
    "traps: ",
    "Out of memory:",
    "nobody cared",
];

/// At most so many lines are kept: a guest that goes wrong may repeat itself for hours.
const KEPT: usize = 20;

/// Reads a console line by line.
#[derive(Debug, Default)]
pub(super) struct Judge {
    /// How often each piece of work passed, and was tried or left out.
    pieces: BTreeMap<String, u64>,
    findings: Vec<String>,
    /// Findings that were not kept.
    more: u64,
    /// The guest's own account at its end: how often pieces passed and failed.
    done: Option<(u64, u64)>,
}

impl Judge {
    /// Takes the console's next line.
    pub(super) fn line(&mut self, line: &str) {
        let line = line.trim_end();
        // With its status beside it, as the script or a suite wrote it, a line may still follow one of the kernel's.
        if let Some(at) = line.find("STRESS ") {
            self.account(&line[at..]);
        } else if wrong(line) {
            self.find(line);
        }
    }

    fn account(&mut self, line: &str) {
        let words: Vec<_> = line.split_whitespace().skip(1).collect();
        match words[..] {
            ["pass", piece, ..] => *self.pieces.entry(piece.to_owned()).or_default() += 1,
            ["left-out", piece, ..] => {
                self.pieces.entry(piece.to_owned()).or_default();
            }
            ["done", "rounds", _, "passed", passed, "failed", failed] => {
                self.done = passed.parse().ok().zip(failed.parse().ok());
            }
            // Anything else is a failure, or a line that something wrote into.
            _ => self.find(line),
        }
    }

    fn find(&mut self, line: &str) {
        if self.findings.len() < KEPT {
            self.findings.push(line.to_owned());
        } else {
            self.more += 1;
        }
    }

    /// How often each piece of work passed.
    pub(super) fn counts(&self) -> impl Iterator<Item = (&str, u64)> {
        self.pieces.iter().map(|(piece, count)| (piece.as_str(), *count))
    }

    /// How often pieces of work passed, all together.
    pub(super) fn passed(&self) -> u64 {
        self.pieces.values().sum()
    }

    /// All that is wrong with a run that ended so. Nothing if all is well.
    pub(super) fn verdict(&self, ending: &Ending) -> Vec<String> {
        let mut list = self.findings.clone();
        if self.more > 0 {
            list.push(format!("and {} more such lines", self.more));
        }
        match ending {
            Ending::Exit(0) => {}
            Ending::Exit(code) => list.push(format!("gearshift ended with exit code {code}")),
            Ending::Killed(how) => list.push(format!("gearshift ended by {how}")),
            Ending::TimeLimit(seconds) => {
                list.push(format!("the guest had not powered off after {seconds} s"));
            }
        }
        match self.done {
            None => list.push("the guest did not come to the end of its work".to_owned()),
            Some((0, _)) => list.push("no piece of work passed".to_owned()),
            Some((passed, 0)) if passed == self.passed() => {}
            Some((passed, failed)) => list.push(format!(
                "the guest counts {passed} passed and {failed} failed, its console {} passed",
                self.passed()
            )),
        }
        list
    }
}

/// Whether the line tells of something that must not happen.
fn wrong(line: &str) -> bool {
    line.ends_with(" WRONG") || COMPLAINTS.iter().any(|complaint| line.contains(complaint))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(console: &str) -> Judge {
        let mut judge = Judge::default();
        console.lines().for_each(|line| judge.line(line));
        judge
    }

    const GOOD: &str = "[    0.000000] Linux version 6.12.0 (debian-kernel@lists.debian.org)\r\n\
        [    0.010000] RCU Tasks Trace: Setting shift to 0 and lim to 1 rcu_task_cb_adjust=1.\r\n\
        [    0.010000] rcu: Preemptible hierarchical RCU implementation.\r\n\
        INIT-REACHED uptime: 1.00\r\n\
        STRESS pass user:nbody round 1 at 3 s\r\nSTRESS left-out user:avx2\r\n\
        STRESS pass tree round 1 at 5 s\r\nSTRESS pass tree round 2 at 9 s\r\n\
        STRESS done rounds 2 passed 3 failed 0\r\nGUEST-DONE status: 0\r\n";

    #[test]
    fn a_good_run_is_counted() {
        let judge = judged(GOOD);
        assert_eq!(judge.verdict(&Ending::Exit(0)), [""; 0]);
        assert_eq!(judge.counts().collect::<Vec<_>>(), [("tree", 2), ("user:avx2", 0), ("user:nbody", 1)]);
        assert_eq!(judge.passed(), 3);
    }

    #[test]
    fn each_complaint_fails_the_run() {
        for line in [
            "RESULT lua iterations=4 ns=1000 best=200 checksum=0000000000000001 WRONG",
            "[    9.1] BUG: unable to handle page fault for address: ffff888000000000",
            "[    9.1] Oops: 0002 [#1] PREEMPT SMP NOPTI",
            "[    9.1] Oops: general protection fault, maybe for address 0x0: 0000 [#1]",
            "[    9.1] Kernel panic - not syncing: Fatal exception",
            "[   99.1] watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [user-suite:80]",
            "[   99.1] rcu: INFO: rcu_preempt self-detected stall on CPU",
            "[   99.1] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
            "[   99.1] INFO: task sh:1 blocked for more than 120 seconds.",
            "[    9.1] WARNING: CPU: 0 PID: 1 at kernel/sched/core.c:1 schedule+0x0/0x1",
            "[    9.1] user-suite[80]: segfault at 0 ip 0 sp 0 error 4",
            "[    9.1] traps: lua[80] trap invalid opcode ip:0 sp:0 error:0",
            "STRESS fail tree round 1 status 1",
            "STRESS fail kernel tainted 512",
            "[    9.1] xSTRESS pa",
        ] {
            let complaints = judged(&format!("{line}\r\n{GOOD}")).verdict(&Ending::Exit(0));
            assert_eq!(complaints.len(), 1, "{line}: {complaints:?}");
        }
    }

    #[test]
    fn the_end_counts() {
        let judge = judged(GOOD);
        for (ending, text) in [
            (Ending::Exit(34), "exit code 34"),
            (Ending::Killed("signal: 11".to_owned()), "signal: 11"),
            (Ending::TimeLimit(660), "after 660 s"),
        ] {
            let complaints = judge.verdict(&ending);
            assert!(complaints.len() == 1 && complaints[0].contains(text), "{complaints:?}");
        }
        // Powered off, but by something else than the script's end.
        let complaints = judged(GOOD.split("STRESS done").next().unwrap()).verdict(&Ending::Exit(0));
        assert!(complaints[0].contains("did not come to the end"), "{complaints:?}");
        for done in ["passed 4 failed 0", "passed 2 failed 1", "passed 0 failed 0"] {
            let console = GOOD.replace("passed 3 failed 0", done);
            assert_eq!(judged(&console).verdict(&Ending::Exit(0)).len(), 1, "{done}");
        }
        assert!(!Judge::default().verdict(&Ending::Exit(0)).is_empty());
    }

    #[test]
    fn a_flood_of_complaints_is_cut() {
        let console = "BUG: x\n".repeat(1000) + GOOD;
        let complaints = judged(&console).verdict(&Ending::Exit(0));
        assert_eq!((complaints.len(), complaints[KEPT].as_str()), (KEPT + 1, "and 980 more such lines"));
    }
}
