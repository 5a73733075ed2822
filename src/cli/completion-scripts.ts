/** Output of `completion SHELL`. Each script runs `vduse-net complete -- WORDS`, and may be sourced more than once. */
export const completionScripts = {
  // Needs no bash-completion. It splits the line itself, since bash would split words at = and : as well.
  bash: `# bash completion for vduse-net
_vduse_net() {
    local line=\${COMP_LINE:0:COMP_POINT} reply rest current prefix
    local -a words
    read -ra words <<< "$line"
    [[ $line == *[[:space:]] ]] && words+=('')
    current=\${words[\${#words[@]} - 1]}
    prefix=\${current%"\${current##*[=:]}"}
    COMPREPLY=()
    while IFS=$'\\t' read -r reply rest; do
        [[ -z $reply || $reply == :* ]] || COMPREPLY+=("\${reply#"$prefix"}")
    done < <("\${words[0]/#\\~/$HOME}" complete -- "\${words[@]:1}" 2> /dev/null)
}
complete -o default -F _vduse_net vduse-net
`,
  zsh: `#compdef vduse-net
_vduse-net() {
    local line
    local -a values
    for line in "\${(@f)$("\${words[1]/#\\~/$HOME}" complete -- "\${(@Q)words[2,CURRENT]}" 2> /dev/null)}"; do
        [[ -z $line || $line == :* ]] || values+=("\${\${line//:/\\\\:}/$'\\t'/:}")
    done
    if (( $#values )); then _describe vduse-net values; else _files; fi
}
if [[ "\${funcstack[1]}" == _vduse-net ]]; then
    _vduse-net "$@"
else
    (( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }
    compdef _vduse-net vduse-net
fi
`,
  fish: `# fish completion for vduse-net
function __vduse_net_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    $words[1] complete -- $words[2..-1] "$current" 2> /dev/null | string match -v -r '^(:.*)?$'
    or __fish_complete_path "$current"
end
complete -c vduse-net -e
complete -c vduse-net -f -a '(__vduse_net_complete)'
`,
} as const

export type CompletedShell = keyof typeof completionScripts

export const isCompletedShell = (shell: string): shell is CompletedShell => shell in completionScripts
