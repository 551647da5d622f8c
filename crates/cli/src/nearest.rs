//! Flags that are not known, and the known ones that are nearest to them.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, Command, CommandFactory, Parser, ValueEnum};

use crate::arguments::Arguments;
use crate::train::{self, Recipe};

/// What a command line says. Where it is wrong the program ends as clap has it, but for the flag that is named in place of an unknown one: clap names only those that are very
/// near, but hidden ones too, and those that the recipe refuses.
pub(crate) fn parse(arguments: Vec<OsString>) -> Arguments {
    let (command, recipe) = (command_of(&arguments), recipe_of(&arguments));
    Arguments::try_parse_from(arguments).unwrap_or_else(|error| with_nearest(error, &command, recipe).exit())
}

/// The long names of a command's flags that may be named in place of another: they are on the help page, and the recipe, where there is one, has a use for them.
pub(crate) fn shown_flags(command: &Command, recipe: Option<Recipe>) -> Vec<&str> {
    let is_for =
        |argument: &&Arg| recipe.is_none_or(|recipe| train::has_use_for(recipe, argument.get_id().as_str()));
    command
        .get_arguments()
        .filter(|argument| !argument.is_hide_set())
        .filter(is_for)
        .flat_map(names)
        .collect()
}

/// What a flag is called.
fn names(argument: &Arg) -> impl Iterator<Item = &str> {
    argument.get_long().into_iter().chain(argument.get_all_aliases().unwrap_or_default())
}

/// The known name that the fewest letters tell from `name`, measured by the longer of both.
pub(crate) fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let hyphens = name.replace('_', "-");
    let likeness = |other: &str| strsim::normalized_damerau_levenshtein(&hyphens, other);
    known.iter().copied().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
}

/// The command that a command line names, or the innermost that is known.
fn command_of(arguments: &[OsString]) -> Command {
    let mut command = Arguments::command();
    for name in arguments.iter().skip(1) {
        let Some(inner) = command.find_subcommand(name).cloned() else { break };
        command = inner;
    }
    command
}

/// The recipe of `diffuse train` that it names.
fn recipe_of(arguments: &[OsString]) -> Option<Recipe> {
    let is_train = arguments.get(1).is_some_and(|command| command == "train");
    let named = |argument: &OsString| Recipe::from_str(argument.to_str()?, false).ok();
    arguments.iter().skip(2).filter(|_| is_train).find_map(named)
}

fn with_nearest(mut error: clap::Error, command: &Command, recipe: Option<Recipe>) -> clap::Error {
    let flag = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(flag)) if error.kind() == ErrorKind::UnknownArgument => flag.clone(),
        _ => return error,
    };
    // Where a command has others within, clap says which of those has the flag.
    let Some(name) = flag.strip_prefix("--").filter(|_| !command.has_subcommands()) else { return error };
    // It would say how the flag is passed as a value.
    error.remove(ContextKind::Suggested);
    error.remove(ContextKind::SuggestedArg);
    if let Some(flag) = nearest(name, &shown_flags(command, recipe)) {
        error.insert(ContextKind::SuggestedArg, ContextValue::String(format!("--{flag}")));
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_found_that_the_fewest_letters_tell_apart() {
        let known = ["rank", "lora-alpha", "learning-rate", "lr-power"];
        for (name, expected) in
            [("lora_alhpa", "lora-alpha"), ("learning_rate_decay", "learning-rate"), ("lr", "lr-power")]
        {
            assert_eq!(nearest(name, &known), Some(expected));
        }
        assert_eq!(nearest("rank", &[]), None);
    }
}
