//! The map ABI: what lb-common says of every map against the BTF in the object.

use std::collections::{BTreeSet, HashMap};

use aya_obj::{Map, Object};
use lb_common::abi::layout::{MAPS, MapLayout, TypeLayout, UNTYPED_MAPS};
use lb_tests::program::object;

/// Maps that user space has no business with.
const INTERNAL: &[&str] = &["scratch4", "scratch6", ".rodata"];

/// One BTF type (Documentation/bpf/btf.rst), as much of it as map keys and values need.
#[derive(Clone, Debug)]
enum Type {
    /// An integer of this many bytes.
    Int(usize),
    /// Element type and count.
    Array(u32, usize),
    /// Size, and members: name, type, offset in bits.
    Struct(usize, Vec<(String, u32, usize)>),
    /// A name or qualifier for another type.
    Alias(u32),
    /// Anything else, with its kind.
    Other(u32),
}

/// The types of an object by id.
struct Btf {
    types: Vec<Type>,
}

impl Btf {
    fn parse(bytes: &[u8]) -> Self {
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        // struct btf_header: magic, version, flags, hdr_len, type_off, type_len, str_off, str_len.
        assert_eq!(bytes[..2], [0x9f, 0xeb], "BTF's magic number");
        let header_len = word(4) as usize;
        let first = header_len + word(8) as usize;
        let end = first + word(12) as usize;
        let strings = &bytes[header_len + word(16) as usize..];
        let name = |offset: u32| {
            let text = strings[offset as usize..].split(|byte| *byte == 0).next();
            String::from_utf8(text.unwrap().to_vec()).unwrap()
        };

        // Type id 0 is void.
        let mut types = vec![Type::Other(0)];
        let mut at = first;
        while at < end {
            // struct btf_type: name_off, info (vlen, kind), size or type.
            let (info, size) = (word(at + 4), word(at + 8));
            let (kind, count) = (info >> 24 & 0x1f, info as usize & 0xffff);
            at += 12;
            let (parsed, length) = match kind {
                1 => (Type::Int(size as usize), 4),
                3 => (Type::Array(word(at), word(at + 8) as usize), 12),
                4 | 5 => {
                    let member = |index: usize| {
                        let at = at + 12 * index;
                        (name(word(at)), word(at + 4), word(at + 8) as usize)
                    };
                    let members = (0..count).map(member).collect();
                    (Type::Struct(size as usize, members), 12 * count)
                }
                8..=11 | 18 => (Type::Alias(size), 0),
                other => {
                    let per_kind = match other {
                        6 | 13 => 8 * count,
                        15 | 19 => 12 * count,
                        14 | 17 => 4,
                        _ => 0,
                    };
                    (Type::Other(other), per_kind)
                }
            };
            types.push(parsed);
            at += length;
        }
        Self { types }
    }

    fn resolve(&self, mut id: u32) -> &Type {
        while let Type::Alias(to) = &self.types[id as usize] {
            id = *to;
        }
        &self.types[id as usize]
    }

    fn size(&self, id: u32) -> usize {
        match self.resolve(id) {
            Type::Int(size) | Type::Struct(size, _) => *size,
            Type::Array(element, count) => self.size(*element) * count,
            Type::Other(kind) => panic!("type {id} of kind {kind} is no key or value"),
            Type::Alias(_) => unreachable!("resolved"),
        }
    }

    /// Name, offset and size of every member; none for what is no struct.
    fn fields(&self, id: u32) -> Vec<(String, usize, usize)> {
        let Type::Struct(_, members) = self.resolve(id) else {
            return Vec::new();
        };
        let field = |(name, member, bits): &(String, u32, usize)| {
            assert_eq!(bits % 8, 0, "{name} is a bit field");
            (name.clone(), bits / 8, self.size(*member))
        };
        members.iter().map(field).collect()
    }
}

fn assert_layout(map: &str, btf: &Btf, id: u32, layout: &TypeLayout) {
    let what = format!("{} in {map}", layout.name);
    assert_eq!(btf.size(id), layout.size, "size of {what}");
    let expected: Vec<_> = layout
        .fields
        .iter()
        .map(|field| (field.name.to_owned(), field.offset, field.size))
        .collect();
    assert_eq!(btf.fields(id), expected, "fields of {what}");
}

fn maps_of(object: &Object) -> HashMap<&str, &Map> {
    object
        .maps
        .iter()
        .map(|(name, map)| (name.as_str(), map))
        .collect()
}

fn definition<'a>(maps: &HashMap<&str, &'a Map>, layout: &MapLayout) -> &'a Map {
    maps.get(layout.name)
        .unwrap_or_else(|| panic!("the object has no map {}", layout.name))
}

/// Every field of every key and value has the name, offset and size that BTF says.
#[test]
fn keys_and_values_are_as_in_btf() {
    let object = Object::parse(&object().unwrap()).unwrap();
    let btf = Btf::parse(&object.btf.as_ref().expect("the object has BTF").to_bytes());
    let maps = maps_of(&object);
    for layout in MAPS {
        let Map::Btf(map) = definition(&maps, layout) else {
            panic!(
                "{} is not defined by BTF: bpftool cannot print it",
                layout.name
            );
        };
        assert_layout(layout.name, &btf, map.def.btf_key_type_id, &layout.key);
        assert_layout(layout.name, &btf, map.def.btf_value_type_id, &layout.value);
    }
}

/// Kinds, sizes and capacities are those of lb-common, and no map is missing there.
#[test]
fn maps_are_as_in_lb_common() {
    let object = Object::parse(&object().unwrap()).unwrap();
    let maps = maps_of(&object);
    for layout in MAPS {
        let map = definition(&maps, layout);
        let found = (
            map.map_type(),
            map.key_size(),
            map.value_size(),
            map.max_entries(),
        );
        let expected = (
            layout.kind as u32,
            layout.key.size as u32,
            layout.value.size as u32,
            layout.max_entries,
        );
        assert_eq!(
            found, expected,
            "{}: kind, key, value, entries",
            layout.name
        );
    }
    for (name, kind, entries) in UNTYPED_MAPS {
        let map = maps.get(name).expect("the object has every map");
        assert_eq!(
            (map.map_type(), map.max_entries()),
            (*kind as u32, *entries)
        );
    }
    let known: BTreeSet<_> = MAPS
        .iter()
        .map(|map| map.name)
        .chain(UNTYPED_MAPS.iter().map(|(name, ..)| *name))
        .chain(INTERNAL.iter().copied())
        .collect();
    let unknown: Vec<_> = maps.keys().filter(|name| !known.contains(**name)).collect();
    assert!(unknown.is_empty(), "not in lb-common: {unknown:?}");
}
