//! What the kernel's verifier says of the shipped object.

use std::{
    collections::{BTreeSet, HashSet},
    env,
    ops::Range,
    process::Command,
};

use aya_obj::{Object, generated::bpf_insn};
use lb_tests::{
    kernels::{self, Effort, Kernels},
    process::output,
    program::{self, PROGRAMS, Verified, object},
};

/// Tells a process of this binary to ask the verifier.
const ORDER: &str = "XVIP_ASK_VERIFIER";
/// What stands before and after each answer of that process.
const ANSWER: &str = "\nanswer: ";
const END: &str = "\nend of answer\n";

/// The bar for each program: a tenth of what the kernel allows.
const MAX_VERIFIED: u32 = 100_000;
/// What a program may use (`MAX_BPF_STACK`).
const MAX_STACK: i32 = 512;
/// The kernel rounds the stack of each function up to this many bytes.
const UNIT: u32 = 16;
/// Kernels before 6.9 round it up to this many, and refuse what is above the limit then.
const OLDER_UNIT: u32 = 32;

const FRAME_POINTER: u8 = 10;
const JUMP: u8 = 0x05;
const EXIT: u8 = 0x95;
const CALL: u8 = 0x85;
/// The source register of a call of another function, in place of a helper.
const PSEUDO_CALL: u8 = 1;
const ADD_IMMEDIATE: u8 = 0x07;
const MOVE_REGISTER: u8 = 0xbf;

/// A program with all functions that it calls, as it is loaded.
struct Linked<'a> {
    instructions: &'a [bpf_insn],
    /// Where its functions begin, its own first.
    starts: BTreeSet<usize>,
}

impl<'a> Linked<'a> {
    fn new(object: &'a Object, name: &str) -> Self {
        let program = &object.programs[name];
        let instructions = &object.functions[&program.function_key()].instructions;
        let mut starts = BTreeSet::from([0]);
        for at in 0..instructions.len() {
            starts.extend(callee(instructions, at));
        }
        Self {
            instructions,
            starts,
        }
    }

    /// The instructions of the function that begins at `start`, by their places.
    fn function(&self, start: usize) -> Range<usize> {
        let end = self.starts.range(start + 1..).next();
        start..end.copied().unwrap_or(self.instructions.len())
    }

    /// Bytes of stack of the function that begins at `start` and the functions that it calls, along
    /// the deepest chain of calls, each rounded up to `unit` as the kernel does
    /// (`check_max_stack_depth`).
    fn stack(&self, start: usize, unit: u32) -> i32 {
        let function = self.function(start);
        let own = depth(&self.instructions[function.clone()]).max(1);
        let callees = function.filter_map(|at| callee(self.instructions, at));
        let below = callees.map(|callee| self.stack(callee, unit)).max();
        own.cast_unsigned().next_multiple_of(unit).cast_signed() + below.unwrap_or(0)
    }
}

/// Where the function begins that the instruction at `at` calls, if it calls one.
fn callee(instructions: &[bpf_insn], at: usize) -> Option<usize> {
    let instruction = &instructions[at];
    let calls = instruction.code == CALL && instruction.src_reg() == PSEUDO_CALL;
    calls.then(|| {
        let target = at as i64 + 1 + i64::from(instruction.imm);
        usize::try_from(target).expect("a call within the program")
    })
}

/// Whether an instruction jumps to itself: what is left of a panic, whose handler does nothing else.
fn loops_forever(instruction: bpf_insn) -> bool {
    instruction.code == JUMP && instruction.off == -1
}

/// How far below the frame pointer these instructions reach, in bytes.
fn depth(instructions: &[bpf_insn]) -> i32 {
    let mut deepest = 0;
    let mut copy = None;
    for instruction in instructions {
        let (dst, src) = (instruction.dst_reg(), instruction.src_reg());
        // Loads have class 1 (from the source register), stores 2 and 3 (to the destination).
        let offset = match instruction.code & 0x07 {
            1 if src == FRAME_POINTER => i32::from(instruction.off),
            2 | 3 if dst == FRAME_POINTER => i32::from(instruction.off),
            7 if instruction.code == ADD_IMMEDIATE && copy == Some(dst) => instruction.imm,
            _ => 0,
        };
        deepest = deepest.min(offset);
        // `r = r10` before `r += offset` makes a pointer into the stack.
        copy = (instruction.code == MOVE_REGISTER && src == FRAME_POINTER).then_some(dst);
    }
    -deepest
}

/// The object with its programs' functions put together.
fn linked() -> Object {
    let mut object = Object::parse(&object().unwrap()).unwrap();
    let sections: HashSet<usize> = object
        .functions
        .keys()
        .map(|(section, _)| *section)
        .collect();
    object.relocate_calls(&sections).unwrap();
    object
}

/// Every program loads as it ships, within the bars for verified instructions and stack, and has not
/// grown unnoticed since docs/KERNELS.md was written.
#[test]
fn programs_are_verified_within_the_bar() {
    lb_tests::skip_unless_root!();
    let object = linked();
    for name in object.programs.keys() {
        assert!(PROGRAMS.contains(&name.as_str()), "{name} is not tested");
    }
    let kernel = kernels::running().unwrap();
    let mut recorded = Kernels::read().unwrap();
    let unit = if is_before_6_9(&kernel) {
        OLDER_UNIT
    } else {
        UNIT
    };
    eprintln!(
        "{:14} {:>12} {:>9} {:>9} {:>11} {:>11} {:>6} {:>6}",
        "program", "instructions", "functions", "verified", "states", "peak", "stack", "older"
    );
    let mut wrong = Vec::new();
    for (name, verified) in ask_the_verifier() {
        let verified = match verified {
            Ok(verified) => verified,
            Err(refusal) => {
                wrong.push(format!("Linux {kernel} refuses {name}: {refusal}"));
                continue;
            }
        };
        let program = Linked::new(&object, name);
        let (stack, older) = (program.stack(0, UNIT), program.stack(0, OLDER_UNIT));
        let (size, functions) = (program.instructions.len(), program.starts.len());
        let Verified {
            instructions,
            total_states,
            peak_states,
        } = verified;
        eprintln!(
            "{name:14} {size:>12} {functions:>9} {instructions:>9} {total_states:>11} {peak_states:>11} \
             {stack:>6} {older:>6}"
        );
        let effort = Effort {
            instructions,
            stack: program.stack(0, unit).cast_unsigned(),
        };
        if instructions >= MAX_VERIFIED {
            wrong.push(format!("{name}: {instructions} verified instructions"));
        }
        // So before Linux 6.9, on whatever kernel this runs.
        if older > MAX_STACK {
            wrong.push(format!("{name}: {older} bytes of stack"));
        }
        if env::var_os("XVIP_BLESS").is_some() {
            recorded.record(&kernel, name, effort);
        } else if recorded.knows(&kernel) {
            wrong.extend(
                recorded
                    .check(&kernel, name, effort)
                    .err()
                    .map(|error| error.to_string()),
            );
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    if env::var_os("XVIP_BLESS").is_some() {
        recorded.retain(PROGRAMS);
        recorded.write().unwrap();
    }
}

/// Asks in a process of its own: it may open no file meanwhile.
fn ask_the_verifier() -> Vec<(&'static str, Result<Verified, String>)> {
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args(["--exact", "verifier::process", "--nocapture"])
        .env(ORDER, "1");
    let written = output(&mut command).unwrap();
    let answers = written.split(ANSWER).skip(1).map(|answer| {
        let answer = answer.split(END).next().unwrap();
        let (name, said) = answer.split_once(' ').unwrap();
        let name = PROGRAMS.iter().find(|program| **program == name).unwrap();
        let numbers: Result<Vec<u32>, _> = said.split(' ').map(str::parse).collect();
        let said = match numbers.as_deref() {
            Ok(&[instructions, total_states, peak_states]) => Ok(Verified {
                instructions,
                total_states,
                peak_states,
            }),
            _ => Err(said.to_owned()),
        };
        (*name, said)
    });
    let answers: Vec<_> = answers.collect();
    assert_eq!(answers.len(), PROGRAMS.len(), "{written}");
    answers
}

/// No test: the process that [`ask_the_verifier`] starts.
#[test]
fn process() {
    if env::var_os(ORDER).is_none() {
        return;
    }
    for (name, verified) in program::verify().unwrap() {
        let said = verified.map_or_else(
            |refusal| refusal,
            |it| format!("{} {} {}", it.instructions, it.total_states, it.peak_states),
        );
        println!("{ANSWER}{name} {said}{END}");
    }
}

/// Whether a kernel rounds the stack as older ones do.
fn is_before_6_9(kernel: &str) -> bool {
    let numbers: Vec<u32> = kernel
        .split('.')
        .map(|number| number.parse().unwrap())
        .collect();
    numbers < vec![6, 9]
}

/// No panic is left in the object, not even one that the verifier would prove out of reach: no
/// function of that name, and no instruction that loops forever, as the panic handler does.
#[test]
fn nothing_panics() {
    let object = linked();
    for function in object.functions.values() {
        let name = &function.name;
        assert!(
            !name.contains("panic") && !name.contains("unwind"),
            "{name}"
        );
        let at = function
            .instructions
            .iter()
            .copied()
            .position(loops_forever);
        assert_eq!(at, None, "{name} loops forever there");
    }
}

/// What the tests above look for is found: an endless loop, and the deepest chain of calls.
#[test]
fn loops_and_chains_are_found() {
    let instruction = |code, (dst, src), off, imm| bpf_insn {
        code,
        _bitfield_align_1: [],
        _bitfield_1: bpf_insn::new_bitfield_1(dst, src),
        off,
        imm,
    };
    let store = |off| instruction(0x7b, (FRAME_POINTER, 0), off, 0);
    let call = |distance| instruction(CALL, (0, PSEUDO_CALL), 0, distance);
    // The functions begin at 0, 4 and 5; the first one calls the others.
    let code = [
        store(-24),
        call(2),
        call(2),
        instruction(EXIT, (0, 0), 0, 0),
        store(-8),
        instruction(JUMP, (0, 0), -1, 0),
    ];
    assert_eq!(code.into_iter().position(loops_forever), Some(5));
    let program = Linked {
        instructions: &code,
        starts: BTreeSet::from([0, 4, 5]),
    };
    assert_eq!(callee(&code, 1), Some(4));
    assert_eq!(
        (program.stack(0, UNIT), program.stack(4, UNIT)),
        (32 + 16, 16)
    );
}
