//! Tables on standard output.

use crate::memory::Memory;
use crate::report::Cell;
use crate::samples::{Samples, significant};

/// Rows of text in aligned columns; the first column is left-aligned, the others right-aligned.
#[derive(Debug)]
pub(crate) struct Table(Vec<Vec<String>>);

impl Table {
    pub(crate) fn new<S: Into<String>>(head: impl IntoIterator<Item = S>) -> Self {
        let mut table = Self(Vec::new());
        table.row(head);
        table
    }

    pub(crate) fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        self.0.push(cells.into_iter().map(Into::into).collect());
    }

    fn text(&self) -> String {
        let columns = self.0.iter().map(Vec::len).max().unwrap_or(0);
        let width = |n: usize| self.0.iter().filter_map(|row| row.get(n)).map(|c| c.chars().count()).max();
        let widths: Vec<_> = (0..columns).map(|n| width(n).unwrap_or(0)).collect();
        let mut text = String::new();
        for (number, row) in self.0.iter().enumerate() {
            let mut line = String::new();
            for (n, cell) in row.iter().enumerate() {
                let width = widths[n];
                line += &if n == 0 { format!("{cell:<width$}") } else { format!("  {cell:>width$}") };
            }
            text += line.trim_end();
            text.push('\n');
            if number == 0 {
                let total = widths.iter().sum::<usize>() + 2 * columns.saturating_sub(1);
                text += &"-".repeat(total);
                text.push('\n');
            }
        }
        text
    }

    #[expect(clippy::print_stdout, reason = "the report")]
    pub(crate) fn print(&self, title: &str) {
        println!("\n{title}\n\n{}", self.text());
    }
}

/// The median of one of the memory values, in MiB.
pub(crate) fn mebibytes(cell: &Cell, value: impl Fn(&Memory) -> Option<u64>) -> String {
    let mut samples = Samples::default();
    for bytes in cell.memory.iter().filter_map(value) {
        samples.push(bytes as f64 / f64::from(1 << 20));
    }
    samples.spread().map_or("-".to_owned(), |spread| significant(spread.median))
}

/// A line below a table.
#[expect(clippy::print_stdout, reason = "the report")]
pub(crate) fn note(line: &str) {
    println!("{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(["a", "bb"]);
        table.row(["long", "1"]);
        table.row(["x"]);
        assert_eq!(table.text(), "a     bb\n--------\nlong   1\nx\n");
    }
}
