//! What the kernel's verifier says of the shipped object.

use aya_obj::{Object, generated::bpf_insn};
use lb_tests::program::{DataPlane, PROGRAMS, object};

/// The bar for each program: a tenth of what the kernel allows.
const MAX_VERIFIED: u32 = 100_000;
/// What a program may use (`MAX_BPF_STACK`).
const MAX_STACK: i32 = 512;

const FRAME_POINTER: u8 = 10;
const ADD_IMMEDIATE: u8 = 0x07;
const MOVE_REGISTER: u8 = 0xbf;

/// Bytes of stack of a program: its entry's, and those of the function of the same (mangled) name
/// that the entry may be a mere call of.
fn stack(object: &Object, name: &str) -> i32 {
    let mangled = format!("{}{name}", name.len());
    let functions = object.functions.values();
    functions
        .filter(|function| function.name == name || function.name.ends_with(&mangled))
        .map(|function| depth(&function.instructions))
        .sum()
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

/// Every program loads as it ships, within the bar; an object that loads has no reachable panic
/// (its panic handler loops, which the verifier refuses).
#[test]
fn programs_are_verified_within_the_bar() {
    lb_tests::skip_unless_root!();
    let parsed = Object::parse(&object().unwrap()).unwrap();
    let plane = DataPlane::load_shipped().unwrap();
    let names: Vec<_> = parsed.programs.keys().map(String::as_str).collect();
    for name in &names {
        assert!(PROGRAMS.contains(name), "{name} is not tested");
    }
    eprintln!(
        "{:14} {:>12} {:>22} {:>6}",
        "program", "xlated bytes", "verified instructions", "stack"
    );
    for name in PROGRAMS {
        let info = plane.info(name).unwrap();
        let (size, verified) = (info.size_translated(), info.verified_instruction_count());
        let (size, verified) = (size.unwrap(), verified.unwrap());
        let stack = stack(&parsed, name);
        eprintln!("{name:14} {size:>12} {verified:>22} {stack:>6}");
        assert!(
            verified < MAX_VERIFIED,
            "{name}: {verified} verified instructions"
        );
        assert!(stack <= MAX_STACK, "{name}: {stack} bytes of stack");
    }
}
