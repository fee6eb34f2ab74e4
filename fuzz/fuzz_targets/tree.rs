//! Trees built from bytes: each must be refused with an error, or give all that is inferred from a tree.

#![no_main]

use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use modula_core::Module;
use modula_core::atom::{Atom, AtomKind};
use modula_core::bond::Bond;
use modula_core::flatten::flatten;
use modula_core::recipe::{self, Map};

const BONDS: [&str; 8] = ["Identity", "Add", "ReLU", "Tanh", "Flatten", "Mean", "FunctionalAttention", "Softmax"];

/// Small, or at an end of what an address or a double holds.
fn size(u: &mut Unstructured<'_>) -> Result<usize> {
    Ok(*u.choose(&[0, 1, 2, 3, 4, 4, 4, 1 << 16, (1 << 31) - 1, 1 << 32, (1 << 63) - 1, usize::MAX])?)
}

fn mass(u: &mut Unstructured<'_>) -> Result<f64> {
    if u.ratio(2, 3)? { Ok(*u.choose(&[0.0, 1.0, 5e-324, 1e-200, 1e200, f64::MAX, -1.0, f64::NAN, f64::INFINITY])?) } else { u.arbitrary() }
}

fn leaf(u: &mut Unstructured<'_>) -> Result<Option<Module>> {
    if u.arbitrary()? {
        let name = u.choose(&BONDS)?;
        let bond = Bond::builtin(name, None).and_then(|bond| bond.declared(mass(u).ok(), None));
        return Ok(bond.ok().map(|bond| Module::bond(bond, None)));
    }
    let kind = match u.int_in_range(0..=4)? {
        0 => AtomKind::Linear { fanout: size(u)?, fanin: size(u)? },
        1 => AtomKind::Embed { d_embed: size(u)?, num_embed: size(u)? },
        2 => AtomKind::Conv2D { out_channels: size(u)?, in_channels: size(u)?, kernel: [size(u)?, size(u)?] },
        3 => AtomKind::Bias { d: size(u)? },
        _ => AtomKind::Scale { d: size(u)? },
    };
    let share = if u.ratio(1, 4)? { Some(u.arbitrary::<String>()?.into()) } else { None };
    Ok(Atom::new(kind, mass(u)?, share).ok().map(|atom| Module::atom(atom, None)))
}

/// Operations on a stack of modules, until the bytes are used up or a module is refused.
fn build(u: &mut Unstructured<'_>) -> Result<Vec<Module>> {
    let mut stack: Vec<Module> = Vec::new();
    while !u.is_empty() && stack.len() < 64 {
        let operation = u.int_in_range(0..=9)?;
        let Some(top) = stack.last().cloned().filter(|_| operation > 1) else {
            stack.extend(leaf(u)?);
            continue;
        };
        let other = u.choose(&stack)?.clone();
        let made = match operation {
            2 => top.compose(&other),
            3 => top.compose(&top),
            4 => Module::tuple(vec![top.clone(), other]),
            5 => Module::tuple(vec![top; u.int_in_range(0..=300)?]),
            6 => top.power(size(u)? as u64),
            7 => top.tare_absolute(mass(u)?),
            8 => top.tare_relative(mass(u)?),
            _ if u.arbitrary()? => top.named(&u.arbitrary::<String>()?.repeat(u.int_in_range(1..=70_000)?)),
            _ => top.scaled(mass(u)?, None),
        };
        match made {
            Ok(made) => stack.push(made),
            // Its words may be as many as the module's name has.
            Err(error) => drop(error.to_string()),
        }
    }
    Ok(stack)
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(stack) = build(&mut Unstructured::new(bytes)) else { return };
    let Some(module) = stack.last() else { return };
    assert!(module.mass().is_finite() && module.mass() >= 0.0);
    assert!(module.table().lines().count() < 300);
    let _ = module.sharpness();
    let Ok((norm, _)) = flatten(module) else { return };
    // Lists with a number for each copy are as long as arrays of that shape; nobody has such arrays beyond this.
    if norm.leaves.iter().any(|leaf| norm.batch(leaf, norm.lead(leaf)).count > 1 << 20 || leaf.copies > 1 << 20) {
        return;
    }
    for leaf in &norm.leaves {
        let Ok(targets) = norm.lead_targets(leaf) else { continue };
        assert!(targets.iter().all(|target| target.is_finite() && *target >= 0.0), "{targets:?}");
    }
    let _ = norm.for_each_atom(|_, _| Ok(()));
    for map in Map::ALL {
        let _ = recipe::recipe(&norm, map);
    }
});
