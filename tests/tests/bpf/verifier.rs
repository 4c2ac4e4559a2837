//! What the kernel's verifier says of the shipped object.

use std::{
    collections::{BTreeSet, HashSet},
    ops::Range,
};

use aya_obj::{Object, generated::bpf_insn};
use lb_tests::program::{DataPlane, PROGRAMS, object};

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

/// Every program loads as it ships, within the bars for verified instructions and stack.
#[test]
fn programs_are_verified_within_the_bar() {
    lb_tests::skip_unless_root!();
    let object = linked();
    let plane = DataPlane::load_shipped().unwrap();
    for name in object.programs.keys() {
        assert!(PROGRAMS.contains(&name.as_str()), "{name} is not tested");
    }
    eprintln!(
        "{:14} {:>12} {:>22} {:>9} {:>6} {:>6}",
        "program", "xlated bytes", "verified instructions", "functions", "stack", "older"
    );
    for name in PROGRAMS {
        let info = plane.info(name).unwrap();
        let (size, verified) = (info.size_translated(), info.verified_instruction_count());
        let (size, verified) = (size.unwrap(), verified.unwrap());
        let program = Linked::new(&object, name);
        let functions = program.starts.len();
        let (stack, older) = (program.stack(0, UNIT), program.stack(0, OLDER_UNIT));
        eprintln!("{name:14} {size:>12} {verified:>22} {functions:>9} {stack:>6} {older:>6}");
        assert!(
            verified < MAX_VERIFIED,
            "{name}: {verified} verified instructions"
        );
        assert!(stack <= MAX_STACK, "{name}: {stack} bytes of stack");
        assert!(
            older <= MAX_STACK,
            "{name}: {older} bytes of stack before Linux 6.9"
        );
    }
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
