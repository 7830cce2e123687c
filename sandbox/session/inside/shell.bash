# The bash runner: `bash shell.bash FD [CODE FLAGS WORD…]`, for bash 4.2 and newer.
#
# Cells are sourced at the top of this one shell: variables, functions, options, jobs and the working directory stay. Requests are
# lines (OP, then words, the last one escaped for printf %b), answers are frames: two lengths (!IQ), JSON, a buffer.
# A cell that exits, `set -e` or an interrupt end bash's own stack for good: the EXIT trap then tells the host, hands everything that
# `declare -p` and its like can say to a fresh bash through a pipe, and becomes it (same process, same files, same jobs).

exec 200<&"$1" 198<&0
[[ $1 == 200 ]] || eval "exec $1<&-"
shift

__sandbox_send() { # members of the frame, without braces; bytes of the buffer; the buffer, when it is text
    local LC_ALL=C __json __head
    printf -v __json '{%s,"buffers":[%d]}' "$1" "$2"
    printf -v __head '\\x%02x' $((${#__json} >> 24 & 255)) $((${#__json} >> 16 & 255)) $((${#__json} >> 8 & 255)) $((${#__json} & 255)) \
        0 0 0 0 $(($2 >> 24 & 255)) $(($2 >> 16 & 255)) $(($2 >> 8 & 255)) $(($2 & 255))
    printf "$__head%s%s" "$__json" "$3" >&200
}

__sandbox_reply() { # members; a text
    local LC_ALL=C
    __sandbox_send "$1" "${#2}" "$2"
}

__sandbox_ask() { # members; a text: the answer is in REPLY; false when there is none
    local op id have
    __sandbox_reply "$1" "$2"
    while IFS=' ' builtin read -r -u 200 op id have REPLY; do
        if [[ $op == answer ]]; then
            printf -v REPLY '%b' "$REPLY"
            [[ $have == 1 ]]
            return
        fi
    done
    return 1
}

# What cells may call

read() { # as the builtin; where it would read the cell's empty stdin, the person is asked
    if ! [[ /dev/fd/0 -ef /dev/fd/198 && " $* " != *" -u"* ]]; then
        builtin read "$@"
        return
    fi
    local __word __prompt='' __secret=false __next=false
    for __word; do
        if $__next; then __prompt=$__word __next=false; continue; fi
        case $__word in
            -*p) __next=true ;;&
            -*s*) __secret=true ;;
        esac
    done
    local REPLY_=$REPLY
    if ! __sandbox_ask "\"op\":\"input\",\"id\":1,\"password\":$__secret" "$__prompt"; then
        REPLY=$REPLY_
        builtin read "$@"
        return
    fi
    local __answer=$REPLY
    REPLY=$REPLY_
    builtin read "$@" <<<"$__answer" 2>/dev/null
}

display() { # FILE [MIME], or MIME with the data on stdin: show a picture, a table or a page in the notebook
    local __mime=$2 __file=$1 __data
    if [[ $# == 1 && $1 == */* && ! -e $1 ]]; then
        __data=$(cat; printf .)
        __sandbox_ask "\"op\":\"display\",\"id\":1,\"mime\":\"${1//[^a-z0-9.+\/-]/}\"" "${__data%.}"
        return 0
    fi
    [[ -n $__mime ]] || case ${__file,,} in
        *.png) __mime=image/png ;;
        *.jpg | *.jpeg) __mime=image/jpeg ;;
        *.gif) __mime=image/gif ;;
        *.svg) __mime=image/svg+xml ;;
        *.html | *.htm) __mime=text/html ;;
        *.md) __mime=text/markdown ;;
        *.json) __mime=application/json ;;
        *) __mime=text/plain ;;
    esac
    __data=$(wc -c <"$__file") || return
    if ((__data > 6291456)); then
        echo "display: $__file: larger than 6 MB: too large to show" >&2
        return 1
    fi
    __sandbox_send "\"op\":\"display\",\"id\":1,\"mime\":\"${__mime//[^a-z0-9.+\/-]/}\"" "$((__data))" ''
    head -c "$((__data))" <"$__file" >&200
    IFS=' ' builtin read -r -u 200 _
}

# What the host asks for between cells

__sandbox_complete() { # the text before the cursor
    local word=${1##*[[:space:]\;\|\&\(\)\<\>=\"\'\`]} before matches
    before=${1%"$word"}
    before=${before##*[$'\n;|&(']}
    if [[ $word == \$* ]]; then
        word=${word#\$} word=${word#\{}
        matches=$(compgen -v -- "$word")
    elif [[ $before =~ ^[[:space:]]*$ && $word != */* ]]; then
        matches=$(compgen -c -- "$word")
    else
        matches=$(compgen -d -S / -- "$word"; compgen -f -- "$word" | while IFS= builtin read -r file; do [[ -d $file ]] || printf '%s\n' "$file"; done)
    fi
    __sandbox_reply "\"op\":\"reply\"" "$word"$'\n'"$matches"
}

__sandbox_inspect() { # the word at the cursor
    local text
    text=$(
        [[ $1 =~ ^[a-zA-Z_][a-zA-Z_0-9]*$ ]] && declare -p -- "$1" 2>/dev/null
        type -a -- "$1" 2>/dev/null
        [[ $(type -t -- "$1") == @(builtin|keyword) ]] && help -- "$1" 2>/dev/null
    )
    __sandbox_reply '"op":"reply"' "$text"
}

__sandbox_parse() { # a cell: what bash says of its grammar
    local text
    text=$(LC_ALL=C "$BASH" -n <<<"$1" 2>&1)
    __sandbox_reply '"op":"reply"' "$text"
}

__sandbox_state() { # everything a fresh bash needs to go on
    local line
    while IFS= builtin read -r line; do
        case $line in
            'declare -'*r*' BASHOPTS='* | 'declare -'*r*' BASH_VERSINFO='* | 'declare -'*r*' EUID='* | 'declare -'*r*' PPID='*) continue ;;
            'declare -'*r*' SHELLOPTS='* | 'declare -'*r*' UID='* | 'declare -'*' BASH'* | 'declare -'*' __sandbox_'* | 'declare -'*' FUNCNAME'*) continue ;;
        esac
        printf '%s\n' "$line"
    done < <(declare -p)
    declare -f
    alias -p
    shopt -p
    set +o
    printf 'cd -- %q\n' "$PWD"
    printf 'umask %s\n' "$(umask)"
}

__sandbox_ended() { # the EXIT trap: $1: the status
    { set +eux; } 2>/dev/null
    trap : INT
    trap - EXIT
    __sandbox_reply "\"op\":\"done\",\"status\":\"exit\",\"exit\":$1"
    unset __sandbox_code
    exec 197< <(__sandbox_state 2>/dev/null)
    exec "$BASH" "$__sandbox_file" 200 "$1" "$__sandbox_flags" "$@"
}

__sandbox_leave() { trap - EXIT; exit "$1"; }

# Cells, one after the other

__sandbox_file=$BASH_SOURCE __sandbox_status=${1:-0} __sandbox_flags=${2:-} __sandbox_code=
shift 2 2>/dev/null
if [[ -e /dev/fd/197 ]]; then
    source /dev/fd/197 2>/dev/null
    exec 197<&-
fi
shopt -s expand_aliases
trap : INT

while :; do
    __sandbox_word=
    IFS=' ' builtin read -r -u 200 __sandbox_op __sandbox_word __sandbox_code || { (($? > 128)) && continue; __sandbox_leave 0; }
    printf -v __sandbox_code '%b' "$__sandbox_code"
    case $__sandbox_op in
        complete | inspect | parse) "__sandbox_$__sandbox_op" "$__sandbox_code"; continue ;;
        settle) __sandbox_reply '"op":"reply"' ''; continue ;; # signals on their way came before this line
        run) ;;
        *) continue ;;
    esac
    trap 'exit 130' INT
    trap '{ __sandbox_status=$? __sandbox_flags=$-; } 2>/dev/null; __sandbox_ended "$__sandbox_status" "$@"' EXIT
    __sandbox_keep=$__sandbox_word
    [[ $__sandbox_flags == *x* ]] && __sandbox_code="{ set -x; } 2>/dev/null; $__sandbox_code"
    [[ $__sandbox_flags == *u* ]] && set -u
    if [[ $__sandbox_flags == *e* ]]; then set -e; else (exit "$__sandbox_status"); fi
    source /dev/fd/199 199<<<"$__sandbox_code"
    { __sandbox_status=$? __sandbox_flags=$-; set +eux; } 2>/dev/null
    trap : INT
    __sandbox_reply "\"op\":\"done\",\"status\":\"$( ((__sandbox_status)) && printf exit || printf ok)\",\"exit\":$__sandbox_status"
    [[ $__sandbox_keep == 1 ]] || __sandbox_leave "$__sandbox_status"
done
__sandbox_flags=$-
__sandbox_ended 0 "$@" # a `break` or `continue` of the cell's own
