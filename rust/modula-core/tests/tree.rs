//! The tree and its plan against a recursion written from the definitions, and at sizes that break a naive one, and at the ends of double
//! precision.

use modula_core::atom::{Atom, AtomKind};
use modula_core::bond::Bond;
use modula_core::flatten::flatten;
use modula_core::module::{Kind, Module};
use modula_core::program::Op;
use modula_core::{Error, Result};
use proptest::prelude::*;

fn linear(mass: f64) -> Module {
    Module::atom(Atom::new(AtomKind::Linear { fanout: 4, fanin: 4 }, mass, None).unwrap(), None)
}

fn bond(name: &str, sensitivity: Option<f64>) -> Module {
    Module::bond(Bond::builtin(name, None).unwrap().declared(sensitivity, None).unwrap(), None)
}

fn sum(members: Vec<Module>) -> Module {
    bond("Add", None).compose(&Module::tuple(members).unwrap()).unwrap()
}

/// Random trees on four features.
fn trees() -> impl Strategy<Value = Module> {
    let scalar = prop_oneof![-3.0..-0.2_f64, 0.2..3.0_f64];
    let leaf = prop_oneof![
        (0.0..5.0_f64).prop_map(linear),
        Just(linear(0.0)),
        (0.1..2.0_f64).prop_map(|s| bond("ReLU", Some(s))),
        Just(bond("Identity", None)),
    ];
    leaf.prop_recursive(5, 24, 3, move |inner| {
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(a, b)| a.compose(&b).unwrap()),
            prop::collection::vec(inner.clone(), 1..4).prop_map(sum),
            (inner.clone(), 0_u64..4).prop_map(|(m, times)| m.power(times).unwrap()),
            (inner.clone(), scalar.clone()).prop_map(|(m, a)| m.scaled(a, None).unwrap()),
            (inner.clone(), scalar.clone()).prop_map(|(m, a)| m.on_scaled(a, None).unwrap()),
            (inner, 0.5..4.0_f64).prop_map(|(m, mass)| m.tare_absolute(mass).unwrap_or(m)),
        ]
    })
}

/// (mass, sensitivity, [(mass, target)] of every atom copy, input first) straight from the definitions, powers written out.
fn by_definition(module: &Module, tare: f64) -> (f64, f64, Vec<(f64, f64)>) {
    let tare = tare * module.mass() / if module.node().mass > 0.0 { module.node().mass } else { 1.0 };
    let tare = if module.node().mass > 0.0 { tare } else { 0.0 };
    let join = |first: (f64, f64, Vec<(f64, f64)>), second: (f64, f64, Vec<(f64, f64)>)| {
        let (m1, s1, atoms1) = first;
        let (m2, s2, atoms2) = second;
        let mass = m1 + m2;
        let share = |m: f64| if mass > 0.0 { m / mass } else { 0.0 };
        let mut atoms: Vec<_> = atoms1.into_iter().map(|(m, t)| (m, t * share(m1) / s2)).collect();
        atoms.extend(atoms2.into_iter().map(|(m, t)| (m, t * share(m2))));
        (mass, s1 * s2, atoms)
    };
    match &module.node().kind {
        Kind::Atom(atom, _) => {
            let mass = atom.mass * tare;
            (mass, 1.0, vec![(mass, if mass > 0.0 { 1.0 } else { 0.0 })])
        }
        Kind::Bond(bond, _) => (0.0, bond.sensitivity, Vec::new()),
        Kind::Compose { outer, inner } => join(by_definition(inner, tare), by_definition(outer, tare)),
        Kind::Power { block, times } => (1..*times).fold(by_definition(block, tare), |chain, _| join(chain, by_definition(block, tare))),
        Kind::Tuple(members) => {
            let parts: Vec<_> = members.iter().map(|member| by_definition(member, tare)).collect();
            let mass: f64 = parts.iter().map(|part| part.0).sum();
            let sensitivity = parts.iter().map(|part| part.1).sum();
            let atoms = parts
                .into_iter()
                .flat_map(|(m, _, atoms)| atoms.into_iter().map(move |(am, t)| (am, if mass > 0.0 { t * m / mass } else { 0.0 })));
            (mass, sensitivity, atoms.collect())
        }
    }
}

fn close(a: f64, b: f64) -> bool {
    // Each level of a tree adds a few roundings; the deepest here has some tens.
    (a - b).abs() <= 1e-12 * a.abs().max(b.abs())
}

proptest! {
    #[test]
    fn the_norm_agrees_with_the_definitions(module in trees()) {
        let (mass, sensitivity, atoms) = by_definition(&module, 1.0);
        prop_assert!(close(module.mass(), mass), "{} {}", module.mass(), mass);
        prop_assert!(close(module.sensitivity(), sensitivity));
        prop_assert_eq!(module.node().atoms as usize, atoms.len());
        let norm = flatten(&module).unwrap().0;
        let mut rows = Vec::new();
        norm.for_each_atom(|each, index| {
            rows.push((each.mass, each.target(index, 1.0, "")?));
            Ok(())
        }).unwrap();
        prop_assert_eq!(rows.len(), atoms.len());
        for ((m, t), (mass, target)) in rows.into_iter().zip(atoms) {
            prop_assert!(close(m, mass), "mass {m} {mass}");
            prop_assert!(close(t, target), "target {t} {target}");
        }
        let copies: u64 = norm.leaves.iter().map(|leaf| leaf.copies).sum();
        prop_assert_eq!(copies, module.node().atoms);
        let masses: f64 = norm.leaves.iter().map(|leaf| leaf.mass).sum();
        prop_assert!(close(masses, module.mass()));
        for leaf in &norm.leaves {
            let targets = norm.lead_targets(leaf).unwrap();
            prop_assert_eq!(targets.len() as u64, leaf.copies);
        }
    }

    #[test]
    fn taring_a_part_changes_nothing_in_the_whole(part in trees(), mass in 0.5..3.0_f64) {
        let whole = sum(vec![part.clone(), linear(1.0)]);
        let before = whole.mass();
        let _tared = part.tare_absolute(mass);
        prop_assert_eq!(whole.mass(), before);
    }
}

#[test]
fn a_hundred_thousand_compositions_fit_a_small_stack() {
    let work = || {
        let mut left = linear(1.0);
        let mut right = linear(1.0);
        let mut sums = linear(1.0);
        for _ in 0..100_000 {
            left = linear(1.0).compose(&left).unwrap();
            right = right.compose(&linear(1.0)).unwrap();
        }
        for _ in 0..10_000 {
            sums = sum(vec![sums, linear(1.0)]);
        }
        for module in [&left, &right, &sums] {
            let norm = flatten(module).unwrap().0;
            assert_eq!(norm.leaves.len() as u64, module.node().atoms);
            assert!(module.table().lines().count() < 300);
            assert!(module.sharpness().unwrap().beta.is_finite());
        }
        drop((left, right, sums));
    };
    let thread = std::thread::Builder::new().stack_size(128 * 1024).spawn(work).unwrap();
    thread.join().unwrap();
}

#[test]
fn a_power_is_one_node_at_any_exponent() {
    let block = bond("ReLU", None).compose(&linear(1.0)).unwrap();
    for times in [1, 3, 1_000_000, u64::MAX] {
        let module = block.power(times).unwrap();
        let (norm, program) = flatten(&module).unwrap();
        assert_eq!((norm.leaves.len(), norm.leaves[0].copies, program.ops.len()), (1, times, 3));
        assert_eq!(module.sharpness().unwrap().gamma, f64::INFINITY);
        assert_eq!(module.table().lines().count(), 6); // a head, four nodes, and what is certified
        let too_many = times == u64::MAX;
        assert_eq!(norm.for_each_atom(|_, _| Ok(())).is_err(), too_many);
        assert_eq!(norm.lead_targets(&norm.leaves[0]).is_err(), too_many);
    }
}

#[test]
fn a_shared_array_serves_all_its_uses() {
    let shared = |kind| Module::atom(Atom::new(kind, 1.0, Some("table".into())).unwrap(), None);
    let embed = shared(AtomKind::Embed { d_embed: 4, num_embed: 9 });
    let readout = shared(AtomKind::Linear { fanout: 9, fanin: 4 });
    let module = readout.compose(&linear(1.0).power(3).unwrap()).unwrap().compose(&embed).unwrap();
    let norm = flatten(&module).unwrap().0;
    assert_eq!(norm.leaves.len(), 2);
    assert_eq!((norm.leaves[0].copies, norm.leaves[1].copies), (2, 3));
    assert_eq!(norm.other_uses(&norm.leaves[0]).unwrap().len(), 1);

    let clash = shared(AtomKind::Linear { fanout: 4, fanin: 4 });
    let message = flatten(&clash.compose(&embed).unwrap()).err().unwrap().to_string();
    assert!(message.contains("[9, 4]") && message.contains("[4, 4]"), "{message}");
}

#[test]
fn refusals_say_what_was_expected_and_what_came() {
    let narrow = Module::atom(Atom::new(AtomKind::Linear { fanout: 8, fanin: 4 }, 1.0, None).unwrap(), None);
    let message = narrow.compose(&narrow).err().unwrap().to_string();
    assert_eq!(message, "cannot compose Linear[8, 4] after Linear[8, 4]: it takes 4 features, but gets 8 features");
    assert!(narrow.power(2).err().unwrap().to_string().contains("8 features"));
    assert!(linear(1.0).scaled(0.0, None).err().unwrap().to_string().contains("not 0"));
    assert!(bond("ReLU", None).tare_absolute(1.0).err().unwrap().to_string().contains("mass is 0"));
    assert!(Atom::new(AtomKind::Bias { d: 3 }, -1.0, None).err().unwrap().to_string().contains("-1"));
    let dead = bond("Tanh", Some(0.0)).compose(&linear(1.0)).unwrap();
    let norm = flatten(&dead).unwrap().0;
    let message = norm.lead_targets(&norm.leaves[0]).err().unwrap().to_string();
    assert!(message.starts_with("linear: the target norm is not finite"), "{message}");
}

#[test]
fn a_power_knows_what_an_update_of_it_should_measure() {
    // Masses 3, then 2 x 3 in the power, then 1; behind the power a sensitivity of 2.
    let power = linear(2.0).power(3).unwrap();
    let tree = bond("ReLU", Some(2.0)).compose(&linear(1.0)).unwrap().compose(&power).unwrap().compose(&linear(3.0)).unwrap();
    let program = flatten(&tree).unwrap().1;
    let targets: Vec<_> =
        program.ops.iter().filter_map(|op| if let Op::Repeat { target, .. } = op { Some(*target) } else { None }).collect();
    assert_eq!(targets, [0.6 / 2.0]);
}

/// What doubles with every line that is written.
fn doubled(start: Module, times: usize, double: impl Fn(&Module) -> Result<Module>) -> Result<Module> {
    (0..times).try_fold(start, |module, _| double(&module))
}

#[test]
fn a_tree_of_shared_parts_too_large_to_walk_is_refused_by_its_size() {
    for double in [|m: &Module| m.compose(m), |m: &Module| Ok(sum(vec![m.clone(), m.clone()]))] {
        let large = doubled(linear(1.0), 60, double).unwrap();
        assert_eq!(large.node().atoms, 1 << 60);
        assert!(matches!(flatten(&large), Err(Error::TooLarge { .. })));
        assert!(matches!(large.sharpness(), Err(Error::TooLarge { .. })));
        assert!(large.table().contains("more rows") && large.table().lines().count() == 3, "{}", large.table());
        let small = doubled(linear(1.0), 10, double).unwrap();
        assert_eq!(flatten(&small).unwrap().0.leaves.len(), 1024);
        assert!(small.sharpness().is_ok());
    }
}

#[test]
fn a_tuple_type_that_doubles_with_every_line_is_refused_by_its_size() {
    let identity = bond("Identity", None);
    let double = |m: &Module| identity.compose(&Module::tuple(vec![m.clone(), m.clone()])?);
    assert!(doubled(identity.clone(), 10, double).is_ok());
    let error = doubled(identity.clone(), 60, double).err();
    assert!(matches!(error, Some(Error::TooLarge { .. })), "{error:?}");
    // What a message shows of a type stays short.
    let wide = doubled(identity.clone(), 12, double).unwrap();
    let error = linear(1.0).compose(&wide).err().unwrap().to_string();
    assert!(error.len() < 1000 && error.contains("... "), "{error}");
}

#[test]
fn a_hundred_thousand_members_are_a_tuple() {
    // Quadratic work takes minutes here.
    let members = || vec![bond("ReLU", None).compose(&bond("Tanh", None)).unwrap(); 100_000];
    let open = sum(members());
    assert_eq!(open.node().bonds, 200_001);
    assert!(open.sharpness().is_ok());
    let apart = Module::tuple((0..100_000).map(|_| bond("Mean", None)).collect()).unwrap();
    assert_eq!(flatten(&bond("Add", None).compose(&apart).unwrap()).unwrap().1.ops.len(), 200_002);
}

#[test]
fn labels_of_any_length_are_drawn() {
    for length in [0xfffe_usize, 0xffff, 0x1_0000, 1 << 20] {
        let named = linear(1.0).named(&"x".repeat(length)).unwrap();
        let table = named.compose(&linear(1.0)).unwrap().table();
        assert!(table.contains(&"x".repeat(length)));
        assert!(table.len() < length + 1500, "only its own row is as long");
    }
}

#[test]
fn a_name_of_several_lines_takes_one_row() {
    let table = linear(1.0).named("first\nsecond\u{7}").unwrap().table();
    assert!(table.lines().count() == 3 && table.contains(r"first\nsecond\u{7}: Linear"), "{table}");
}

/// Masses and factors up to the ends of double precision.
fn extreme() -> impl Strategy<Value = f64> {
    prop_oneof![Just(0.0), Just(1.0), Just(5e-324), Just(f64::MIN_POSITIVE), Just(f64::MAX), (-1074.0..1023.0_f64).prop_map(f64::exp2)]
}

proptest! {
    #[test]
    fn a_leaf_with_mass_has_a_target_or_an_error(masses in prop::collection::vec(extreme(), 1..4), tares in prop::collection::vec(extreme(), 0..4), times in 1_u64..1000) {
        let build = || {
            let mut module = linear(masses[0]);
            for &mass in &masses[1..] {
                module = module.compose(&linear(mass))?;
            }
            for &relative in &tares {
                module = module.compose(&linear(1.0))?.tare_relative(relative)?;
            }
            module.power(times)
        };
        let Ok(module) = build() else { return Ok(()) };
        prop_assert!(module.mass().is_finite());
        let Ok((norm, _)) = flatten(&module) else { return Ok(()) };
        for leaf in &norm.leaves {
            // Every mass is that of an atom times the tares around it: 0 only by a factor of 0.
            let zero = masses.contains(&0.0) || tares.contains(&0.0);
            match norm.lead_targets(leaf) {
                Ok(targets) => prop_assert!(zero || targets.iter().all(|&target| target > 0.0 && target.is_finite()), "{targets:?}"),
                Err(error) => prop_assert!(error.to_string().contains(&leaf.path)),
            }
        }
    }
}

#[test]
fn masses_out_of_range_are_named() {
    let heavy = linear(1e308).named("heavy").unwrap();
    let range = |module: Result<Module>| module.err().unwrap().to_string();
    assert!(range(heavy.compose(&heavy)).contains("a composition of 2 atoms"));
    assert!(range(heavy.power(2)).contains("a power of 2 copies"));
    assert!(range(heavy.tare_relative(10.0)).contains("\"heavy\""));
    assert!(range(linear(5e-324).named("light").unwrap().tare_absolute(1.0)).contains("\"light\""));
    let light = linear(1.0).tare_relative(1e-200).unwrap();
    assert!(range(light.tare_relative(1e-200)).contains("Linear"));
    let inside = light.compose(&linear(1.0)).unwrap().tare_relative(1e-200).unwrap();
    assert!(matches!(flatten(&inside), Err(Error::MassRange { .. })));
    // Nothing of the update would be left where what follows moves by 1e400.
    let loud = linear(1.0).scaled(1e200, None).unwrap().scaled(1e200, None).unwrap();
    let norm = flatten(&loud).unwrap().0;
    assert!(matches!(norm.lead_targets(&norm.leaves[0]), Err(Error::VanishingTarget { .. })));
}

#[test]
fn sizes_that_cannot_be_counted_are_refused() {
    let atom = |kind| Atom::new(kind, 1.0, None);
    let huge = usize::MAX / 2;
    assert!(atom(AtomKind::Linear { fanout: huge, fanin: huge }).is_err());
    assert!(atom(AtomKind::Conv2D { out_channels: 0, in_channels: 0, kernel: [huge, huge] }).is_err());
    assert!(atom(AtomKind::Linear { fanout: 1 << 30, fanin: 1 << 30 }).is_ok());
    let many = linear(1.0).power(1 << 40).unwrap();
    let norm = flatten(&many).unwrap().0;
    assert!(matches!(norm.lead_targets(&norm.leaves[0]), Err(Error::TooMany { .. })));
    assert!(matches!(norm.for_each_atom(|_, _| Ok(())), Err(Error::TooMany { .. })));
}
