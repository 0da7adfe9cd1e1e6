//! Tables of fixed-width text: no lines, two blanks between columns, as wide as whoever reads can see.

use crate::render::text::{cut, line};
use crate::render::{Line, Tone};

/// How long a cell may be where nothing else bounds it.
const CELL_CHARS_MAX: usize = 400;

/// How a column is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Column {
    /// To the left, as wide as its text.
    Left(&'static str),
    /// To the right: numbers.
    Right(&'static str),
    /// To the left, and cut where the table would be too wide; at most one.
    Elastic(&'static str),
}

impl Column {
    fn title(self) -> &'static str {
        match self {
            Column::Left(title) | Column::Right(title) | Column::Elastic(title) => title,
        }
    }
}

/// A table that is filled row by row.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    columns: Vec<Column>,
    rows: Vec<(Tone, Vec<String>)>,
}

impl Table {
    /// Makes an empty table.
    pub(crate) fn new(columns: &[Column]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row; one cell for each column.
    pub(crate) fn row<const N: usize>(&mut self, tone: Tone, cells: [String; N]) {
        debug_assert_eq!(N, self.columns.len(), "one cell for each column");
        self.rows.push((tone, cells.iter().map(|cell| line(cell, CELL_CHARS_MAX)).collect()));
    }

    /// Returns its lines, titles first; `width`: how many columns a line may have.
    pub(crate) fn lines(self, width: usize) -> Vec<Line> {
        const BETWEEN: usize = 2;
        let titles: Vec<String> =
            self.columns.iter().map(|column| column.title().to_owned()).collect();
        let mut rows = self.rows;
        rows.insert(0, (Tone::Faint, titles));
        let widest = |index: usize| {
            rows.iter().map(|(_, cells)| cells[index].chars().count()).max().unwrap_or_default()
        };
        let mut widths: Vec<usize> = (0..self.columns.len()).map(widest).collect();
        let all = widths.iter().sum::<usize>() + BETWEEN * widths.len().saturating_sub(1);
        let elastic = self.columns.iter().position(|column| matches!(column, Column::Elastic(_)));
        if let Some(index) = elastic {
            let surplus = all.saturating_sub(width);
            widths[index] = widths[index].saturating_sub(surplus).max(widths[index].min(8));
        }
        rows.into_iter()
            .map(|(tone, cells)| {
                let cells = cells.iter().zip(&self.columns).zip(&widths);
                let cells = cells.map(|((cell, column), width)| match column {
                    Column::Right(_) => format!("{cell:>width$}"),
                    Column::Left(_) => format!("{cell:<width$}"),
                    Column::Elastic(_) => format!("{:<width$}", cut(cell, *width)),
                });
                let text = cells.collect::<Vec<_>>().join(&" ".repeat(BETWEEN));
                Line::new(tone, text.trim_end())
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::WIDTH;

    #[test]
    fn what_is_too_wide_is_cut_where_it_may_be() {
        let columns = [Column::Left("NAME"), Column::Elastic("TEXT"), Column::Right("N")];
        let mut table = Table::new(&columns);
        table.row(Tone::Plain, ["a".to_owned(), "short".to_owned(), "7".to_owned()]);
        table.row(Tone::Bad, ["bcdefg".to_owned(), "x\n".repeat(90), "1000".to_owned()]);
        let lines = table.clone().lines(WIDTH);
        let texts: Vec<_> = lines.iter().map(|line| line.text.as_str()).collect();
        assert_eq!(texts[0], format!("NAME    TEXT{}     N", " ".repeat(62)));
        assert_eq!(texts[1], format!("a       short{}     7", " ".repeat(61)));
        assert_eq!(texts[2].chars().count(), WIDTH);
        assert!(texts[2].starts_with("bcdefg  x x") && texts[2].ends_with("x…  1000"), "{texts:?}");
        assert_eq!(lines[2].tone, Tone::Bad);
        let whole = table.lines(usize::MAX);
        assert!(whole[2].text.ends_with("x x  1000"), "nobody's screen, nothing cut: {whole:?}");
        assert_eq!(Table::new(&columns).lines(WIDTH).len(), 1, "an empty table has its titles");
    }
}
