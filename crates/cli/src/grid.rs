//! Several pictures as one (`--grid`).

use image::{Rgb, RgbImage, imageops};

/// Pictures on their way into one, row by row.
#[derive(Debug, Default)]
pub(crate) struct Grid {
    pictures: Vec<RgbImage>,
    /// What the first picture was made with: a grid carries that, as in web UIs.
    parameters: Option<String>,
}

impl Grid {
    pub(crate) fn add(&mut self, picture: &RgbImage, parameters: &str) {
        self.pictures.push(picture.clone());
        self.parameters.get_or_insert_with(|| parameters.to_string());
    }

    pub(crate) fn len(&self) -> usize {
        self.pictures.len()
    }

    pub(crate) fn parameters(&self) -> &str {
        self.parameters.as_deref().unwrap_or_default()
    }

    /// The pictures side by side in so many columns, each in a cell of the largest one's size; what is left is black.
    pub(crate) fn join(&self, columns: usize) -> RgbImage {
        let width = self.pictures.iter().map(RgbImage::width).max().unwrap_or(0);
        let height = self.pictures.iter().map(RgbImage::height).max().unwrap_or(0);
        let columns = columns.clamp(1, self.pictures.len().max(1));
        let rows = self.pictures.len().div_ceil(columns);
        let mut whole = RgbImage::from_pixel(width * columns as u32, height * rows as u32, Rgb([0; 3]));
        for (index, picture) in self.pictures.iter().enumerate() {
            let (column, row) = (index % columns, index / columns);
            let (x, y) = (column as i64 * i64::from(width), row as i64 * i64::from(height));
            imageops::replace(&mut whole, picture, x, y);
        }
        whole
    }
}

/// How many columns: the pictures of a prompt are a row where there are several of both, else the grid is as square as can be.
pub(crate) fn columns(prompts: usize, num_images: usize) -> usize {
    if prompts > 1 && num_images > 1 {
        return num_images;
    }
    let count = prompts.max(1).saturating_mul(num_images);
    (count as f64).sqrt().ceil() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_filled_one_after_the_other() {
        let mut grid = Grid::default();
        for shade in 1..=5 {
            grid.add(&RgbImage::from_pixel(2, 3, Rgb([shade; 3])), &format!("picture {shade}"));
        }
        let whole = grid.join(columns(1, 5));
        assert_eq!(whole.dimensions(), (6, 6));
        let shades: Vec<u8> = [(0, 0), (2, 2), (4, 0), (0, 3), (3, 5), (4, 3)]
            .iter()
            .map(|(x, y)| whole.get_pixel(*x, *y).0[0])
            .collect();
        assert_eq!(shades, [1, 2, 3, 4, 5, 0]);
        assert_eq!(grid.parameters(), "picture 1");
    }

    #[test]
    fn a_prompts_pictures_are_a_row() {
        assert_eq!(
            [columns(3, 4), columns(4, 1), columns(1, 4), columns(1, 1), columns(0, 2)],
            [4, 2, 2, 1, 2]
        );
    }
}
