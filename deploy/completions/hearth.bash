# bash completion for hearth: verbs are the programs named hearth-VERB, options come from each program's own table, model
# names from the running service.
_hearth() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} verb=${COMP_WORDS[1]}
    if [ "$COMP_CWORD" -eq 1 ]; then
        local dir verbs
        dir=$(dirname "$(readlink -f "$(command -v hearth)")")
        verbs=$(for f in "$dir"/hearth-*; do [ -x "$f" ] && basename "$f" | sed 's/^hearth-//'; done |
            grep -vE '^(keeper|broker|worker|loader|http)$')
        COMPREPLY=($(compgen -W "$verbs" -- "$word"))
        return
    fi
    case $before in
    -m | --model | load | unload)
        COMPREPLY=($(compgen -W "$(hearth models --json 2>/dev/null | sed -n 's/.*"name":"\([^"]*\)".*/\1/p')" -- "$word"))
        return ;;
    --file | --direct | --config | --models | --run)
        COMPREPLY=($(compgen -f -- "$word"))
        return ;;
    esac
    if [[ $word == -* ]]; then
        COMPREPLY=($(compgen -W "$(hearth "$verb" --words 2>/dev/null)" -- "$word"))
    else
        COMPREPLY=($(compgen -f -- "$word"))
    fi
}
complete -F _hearth hearth
