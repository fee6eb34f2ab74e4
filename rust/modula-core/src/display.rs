//! A tree as text: one line for messages, and a table of one row for each module, in the order of the data flow from top to bottom.

use std::collections::VecDeque;
use std::fmt;
use std::rc::Rc;

use crate::atom::AtomKind;
use crate::findings::short;
use crate::module::{Kind, MAX_PARTS, Module};
use crate::reach::Reaches;
use crate::{interrupt, memory};

/// A table with more rows than this has its middle rows left out.
const MAX_ROWS: usize = 200;
/// Branches deeper than this are drawn at this depth, with the depth written out.
const MAX_DEPTH: usize = 24;
/// The last line names at most this many places where a certificate ends.
const MAX_ENDS: usize = 4;
/// The widest column of labels.
const MAX_WIDTH: usize = 200;

struct Row {
    label: String,
    mass: f64,
    sensitivity: f64,
    target: Option<f64>,
    reach: String,
}

struct Frame<'a> {
    module: &'a Module,
    factor: f64,
    after: f64,
    /// The largest RMS that arrives.
    arriving: f64,
    depth: usize,
    // The branches drawn to the left of this row, and whether the row is the last of its siblings.
    prefix: Rc<str>,
    last: bool,
}

/// One line, for messages: the name if the module has one, else its kind and size.
impl fmt::Display for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(name) = self.name() {
            return write!(f, "{name:?}");
        }
        match &self.node.kind {
            Kind::Atom(atom, _) => {
                write!(f, "{}{:?}", atom.kind.name(), atom.kind.shape())
            }
            Kind::Bond(bond, _) => write!(f, "{}", bond.name),
            Kind::Compose { .. } => write!(f, "a composition of {} atoms", self.node.atoms),
            Kind::Tuple(members) => write!(f, "a tuple of {}", members.len()),
            Kind::Power { times, .. } => write!(f, "a power of {times} copies"),
        }
    }
}

/// The whole tree, as a table.
impl fmt::Debug for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.table())
    }
}

impl Module {
    /// The tree as a table: the mass, sensitivity and share of the total mass of every module, and the target norm of every atom, with the
    /// largest RMS that can arrive at it (its reach). Within a power the target norm is the one of the copy nearest the output, the reach
    /// the largest of all copies. A bond whose sensitivity is not proved has the word "estimate" in place of a reach. A tree too large to
    /// walk shows its first row alone.
    pub fn table(&self) -> String {
        let total = self.mass();
        memory::expect(self.node.parts.min(MAX_PARTS) as usize * size_of::<Frame<'_>>());
        let reaches = (self.node.parts <= MAX_PARTS).then(|| Reaches::new(self, 1.0));
        let mut head: Vec<Row> = Vec::new();
        // Rows are written out only when it is known that they stay.
        let mut tail: VecDeque<Frame<'_>> = VecDeque::new();
        let mut left_out = if self.node.parts > MAX_PARTS { self.node.parts - 1 } else { 0 };
        let root = Frame { module: self, factor: 1.0, after: 1.0, arriving: 1.0, depth: 0, prefix: "".into(), last: true };
        let mut stack = vec![root];
        while let Some(frame) = stack.pop() {
            interrupt::count(1);
            if let Some(reaches) = &reaches {
                frame.push_children(&mut stack, reaches);
            }
            if head.len() < MAX_ROWS / 2 {
                head.push(frame.row(total));
                continue;
            }
            tail.push_back(frame);
            if tail.len() > MAX_ROWS / 2 {
                tail.pop_front();
                left_out += 1;
            }
        }
        let tail: Vec<Row> = tail.iter().map(|frame| frame.row(total)).collect();
        render(&head, left_out, &tail, total) + &self.verdict()
    }

    /// The last line of the table: whether the certificate holds, or where it ends.
    fn verdict(&self) -> String {
        let Ok(certificate) = self.certificate(&[1.0]) else { return String::new() };
        if self.keeps(&certificate) {
            return "\nwell-normed for inputs of RMS at most 1".into();
        }
        let shown: Vec<_> = certificate.ends.iter().take(MAX_ENDS).cloned().collect();
        let more = certificate.ends.len() - shown.len();
        let more = if more > 0 { format!("; and {more} more") } else { String::new() };
        format!("\nnot proved to be well-normed: {}{more}", on_one_line(&shown.join("; ")))
    }
}

impl<'a> Frame<'a> {
    fn mass(&self) -> f64 {
        self.module.mass() * self.factor
    }

    fn row(&self, total: f64) -> Row {
        let module = self.module;
        let described = match &module.node.kind {
            Kind::Atom(atom, _) => {
                let shape: Vec<String> = atom.kind.shape().iter().map(usize::to_string).collect();
                let shared = atom.share.as_ref().map_or(String::new(), |share| format!(", share={share:?}"));
                let scale = if atom.scale == 1.0 { String::new() } else { format!(", scale={}", short(atom.scale)) };
                format!("{}({}{scale}{shared})", atom.kind.name(), shape.join(", "))
            }
            Kind::Bond(bond, _) => bond.name.to_string(),
            Kind::Compose { .. } => "composition".into(),
            Kind::Tuple(_) => "tuple".into(),
            Kind::Power { times, .. } => format!("** {times}"),
        };
        let named = module.name().map_or(described.clone(), |name| format!("{name}: {described}"));
        let branch = match (self.depth, self.last) {
            (0, _) => "",
            (_, true) => "└─ ",
            (_, false) => "├─ ",
        };
        let deep = if self.depth > MAX_DEPTH { format!("[depth {}] ", self.depth) } else { String::new() };
        let scale = if let Kind::Atom(atom, _) = &module.node.kind { atom.scale.abs() } else { 1.0 };
        let target = || if total > 0.0 { self.mass() / total / self.after / scale } else { 0.0 };
        Row {
            label: format!("{}{branch}{deep}{}", self.prefix, on_one_line(&named)),
            mass: self.mass(),
            sensitivity: module.sensitivity(),
            target: matches!(module.node.kind, Kind::Atom(..)).then(target),
            reach: match &module.node.kind {
                Kind::Atom(atom, _) if !matches!(atom.kind, AtomKind::Embed { .. }) => short(self.arriving),
                Kind::Bond(bond, _) if bond.estimated(self.arriving) => "estimate".into(),
                _ => String::new(),
            },
        }
    }

    fn push_children(&self, stack: &mut Vec<Frame<'a>>, reaches: &Reaches) {
        let factor = self.factor * self.module.factor;
        // (module, factor of the handles above it, sensitivity after it), input first.
        let mut children: Vec<(&'a Module, f64, f64)> = Vec::new();
        match &self.module.node.kind {
            Kind::Atom(..) | Kind::Bond(..) => {}
            Kind::Tuple(members) => children.extend(members.iter().map(|member| (member, factor, self.after))),
            Kind::Power { block, .. } => children.push((block, factor, self.after)),
            // A chain of unnamed compositions is one list.
            Kind::Compose { outer, inner } => {
                let mut chain = vec![(outer, factor, self.after), (inner, factor, self.after * outer.sensitivity())];
                while let Some((module, factor, after)) = chain.pop() {
                    interrupt::count(1);
                    match &module.node.kind {
                        Kind::Compose { outer, inner } if module.name.is_none() => {
                            let factor = factor * module.factor;
                            chain.push((outer, factor, after));
                            chain.push((inner, factor, after * outer.sensitivity()));
                        }
                        _ => children.push((module, factor, after)),
                    }
                }
            }
        }
        let indent = match (self.depth, self.last) {
            (0, _) => "",
            (depth, _) if depth > MAX_DEPTH => "",
            (_, true) => "   ",
            (_, false) => "│  ",
        };
        let count = children.len();
        let prefix: Rc<str> = format!("{}{indent}", self.prefix).into();
        let mut arriving = match &self.module.node.kind {
            Kind::Power { block, times } => reaches.of(block).within_power(*times, self.arriving),
            _ => self.arriving,
        };
        let in_a_row = matches!(self.module.node.kind, Kind::Compose { .. });
        let mut frames = Vec::with_capacity(count);
        for (index, (module, factor, after)) in children.into_iter().enumerate() {
            let (depth, prefix, last) = (self.depth + 1, prefix.clone(), index + 1 == count);
            frames.push(Frame { module, factor, after, arriving, depth, prefix, last });
            if in_a_row {
                arriving = reaches.of(module).of(arriving);
            }
        }
        stack.extend(frames.into_iter().rev());
    }
}

/// The text with its line breaks and other control characters written as escapes.
fn on_one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        match character.is_control() {
            true => line.extend(character.escape_default()),
            false => line.push(character),
        }
    }
    line
}

fn number(value: f64) -> String {
    if value != 0.0 && !(1e-3..1e6).contains(&value.abs()) {
        return format!("{value:.3e}");
    }
    let fixed = format!("{value:.4}");
    fixed.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Text, filled up with spaces to a width that may be more than a format takes.
fn padded(text: &str, width: usize) -> String {
    let missing = width.saturating_sub(text.chars().count());
    text.to_owned() + &" ".repeat(missing)
}

fn render(head: &[Row], left_out: u64, tail: &[Row], total: f64) -> String {
    let widths = head.iter().chain(tail).map(|row| row.label.chars().count());
    // A longer label than this pushes the numbers of its own row aside, not those of all others.
    let width = widths.max().unwrap_or(0).clamp("module".len(), MAX_WIDTH);
    let mut text =
        format!("{}  {:>10}  {:>11}  {:>7}  {:>10}  {:>8}\n", padded("module", width), "mass", "sensitivity", "share", "target", "reach");
    let line = |row: &Row| {
        let share = if total > 0.0 { 100.0 * row.mass / total } else { 0.0 };
        let target = row.target.map_or(String::new(), number);
        let line = format!(
            "{}  {:>10}  {:>11}  {:>6}%  {:>10}  {:>8}",
            padded(&row.label, width),
            number(row.mass),
            number(row.sensitivity),
            number((share * 10.0).round() / 10.0),
            target,
            row.reach
        );
        line.trim_end().to_owned() + "\n"
    };
    text.extend(head.iter().map(line));
    if left_out > 0 {
        text.push_str(&format!("   ... {left_out} more rows ...\n"));
    }
    text.extend(tail.iter().map(line));
    text.truncate(text.trim_end().len());
    text
}
