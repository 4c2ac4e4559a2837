//! A program that passes everything, for the far ends of veth links: the kernel delivers what a
//! veth end sends by `XDP_TX` only if the other end has a program too. A real network card needs
//! no such thing.
//!
//! It is two instructions in an object written here by hand, so that a topology depends neither
//! on xvip's own object (and the size of its maps) nor on a compiler.

use anyhow::{Context, Result};
use aya::{
    Ebpf, EbpfLoader,
    programs::{Xdp, xdp::XdpMode},
};

/// `XDP_PASS` of `linux/bpf.h`.
const XDP_PASS: i32 = 2;
const LICENSE: &[u8] = b"Dual MIT/GPL\0";
/// Section names; the offsets below count into it. The program's section and symbol follow.
const NAMES: &[u8] = b"\0license\0.strtab\0.symtab\0";
const LICENSE_NAME: u32 = 1;
const STRTAB: u32 = 9;
const SYMTAB: u32 = 17;

const ELF_HEADER: usize = 64;
const SECTIONS: u16 = 5;

/// The stub, attached to some interfaces until it is dropped.
#[derive(Debug)]
pub struct XdpStub {
    _loaded: Ebpf,
}

impl XdpStub {
    /// Attaches the stub to interfaces of the calling thread's network namespace. `frags`: it takes
    /// frames over one page, and large segments; without that the other ends of the links send none.
    pub fn attach<'a>(interfaces: impl IntoIterator<Item = &'a str>, frags: bool) -> Result<Self> {
        let section = if frags { "xdp.frags" } else { "xdp" };
        let mut loaded = EbpfLoader::new()
            .btf(None)
            .load(&object(section, "xdp_pass", &verdict(XDP_PASS)))
            .context("cannot read the stub's object")?;
        let program: &mut Xdp = loaded
            .program_mut("xdp_pass")
            .context("the stub's object has no program")?
            .try_into()
            .context("the stub is not an XDP program")?;
        program.load().context("cannot load the stub")?;
        for interface in interfaces {
            program
                .attach(interface, XdpMode::Driver)
                .with_context(|| format!("cannot attach the stub to {interface}"))?;
        }
        Ok(Self { _loaded: loaded })
    }
}

/// Instructions that return a verdict: `r0 = verdict; exit`.
pub(crate) fn verdict(verdict: i32) -> Vec<u8> {
    [instruction(0xb7, 0, 0, verdict), instruction(0x95, 0, 0, 0)].concat()
}

/// One instruction: opcode, registers, offset, constant.
pub(crate) fn instruction(opcode: u8, registers: u8, offset: i16, constant: i32) -> [u8; 8] {
    let [low, high] = offset.to_le_bytes();
    let [a, b, c, d] = constant.to_le_bytes();
    [opcode, registers, low, high, a, b, c, d]
}

/// The relocatable ELF file of a program: header, contents of the sections, section headers.
pub(crate) fn object(section: &str, symbol: &str, program: &[u8]) -> Vec<u8> {
    let mut names = NAMES.to_vec();
    let mut name = |text: &str| {
        let at = u32::try_from(names.len()).unwrap_or(u32::MAX);
        names.extend([text.as_bytes(), &[0]].concat());
        at
    };
    let (section, symbol) = (name(section), name(symbol));
    let symbols = symbols(symbol, program.len());
    let contents: [&[u8]; 4] = [program, LICENSE, &names, &symbols];
    let mut body = Vec::new();
    let mut places = Vec::new();
    for content in contents {
        places.push((ELF_HEADER + body.len()) as u64);
        body.extend_from_slice(content);
        body.resize(body.len().next_multiple_of(8), 0);
    }

    let mut file = elf_header((ELF_HEADER + body.len()) as u64);
    file.extend_from_slice(&body);
    file.extend_from_slice(&[0; 64]); // section 0 is none
    let kinds = [
        // name, type, flags, link, info, entry size
        (section, 1, 6, 0, 0, 0),      // PROGBITS, alloc and exec
        (LICENSE_NAME, 1, 3, 0, 0, 0), // PROGBITS, alloc and write
        (STRTAB, 3, 0, 0, 0, 0),       // STRTAB
        (SYMTAB, 2, 0, 3, 1, 24),      // SYMTAB, names in section 3, globals from symbol 1
    ];
    for (((name, kind, flags, link, info, entry), place), content) in
        kinds.into_iter().zip(places).zip(contents)
    {
        push32(&mut file, name);
        push32(&mut file, kind);
        push64(&mut file, flags);
        push64(&mut file, 0); // address
        push64(&mut file, place);
        push64(&mut file, content.len() as u64);
        push32(&mut file, link);
        push32(&mut file, info);
        push64(&mut file, 8); // alignment
        push64(&mut file, entry);
    }
    file
}

/// ELF64, little endian, relocatable, machine BPF; the section headers start at `sections_at`.
fn elf_header(sections_at: u64) -> Vec<u8> {
    let mut header = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    push16(&mut header, 1); // relocatable
    push16(&mut header, 247); // EM_BPF
    push32(&mut header, 1); // version
    push64(&mut header, 0); // entry
    push64(&mut header, 0); // program headers
    push64(&mut header, sections_at);
    push32(&mut header, 0); // flags
    push16(&mut header, 64); // size of this header
    push16(&mut header, 0);
    push16(&mut header, 0);
    push16(&mut header, 64); // size of a section header
    push16(&mut header, SECTIONS);
    push16(&mut header, 3); // section names are in section 3
    header
}

/// No symbol, then the program: a global function in section 1.
fn symbols(name: u32, length: usize) -> Vec<u8> {
    let mut table = vec![0; 24];
    push32(&mut table, name);
    table.extend_from_slice(&[0x12, 0]); // global function, default visibility
    push16(&mut table, 1);
    push64(&mut table, 0);
    push64(&mut table, length as u64);
    table
}

fn push16(to: &mut Vec<u8>, value: u16) {
    to.extend_from_slice(&value.to_le_bytes());
}

fn push32(to: &mut Vec<u8>, value: u32) {
    to.extend_from_slice(&value.to_le_bytes());
}

fn push64(to: &mut Vec<u8>, value: u64) {
    to.extend_from_slice(&value.to_le_bytes());
}
