# The POSIX shell's runner: `sh shell.sh FD SHELL [STATUS FLAGS]`, for busybox's ash, dash and others.
#
# Cells are evaluated at the top of this one shell: variables, functions, options, jobs and the working directory stay. Requests are
# lines (OP, then words, the last one escaped for printf %b), answers are frames: two lengths (!IQ), JSON, a buffer.
# A cell that exits, `set -e`, a syntax error or an interrupt end the shell for good: the EXIT trap then tells the host, hands the
# variables, aliases and the directory to a fresh shell through one variable, and becomes it (same process). POSIX has no way to
# print functions: they are lost then.

eval "exec 9<&$1 8<&0"
[ "$1" = 9 ] || eval "exec $1<&-"
__sandbox_file=$0 __sandbox_shell=$2 __sandbox_status=${3:-0} __sandbox_flags=${4:-}
set --

__sandbox_send() { # members of the frame, without braces; bytes of the buffer; the buffer, when it is text
    __sandbox_json="{$1,\"buffers\":[$2]}"
    printf "$(printf '\\%03o' 0 0 $((${#__sandbox_json} >> 8 & 255)) $((${#__sandbox_json} & 255)) \
        0 0 0 0 $(($2 >> 24 & 255)) $(($2 >> 16 & 255)) $(($2 >> 8 & 255)) $(($2 & 255)))%s%s" "$__sandbox_json" "$3" >&9
}

__sandbox_reply() { # members; a text
    __sandbox_send "$1" "$(printf %s "$2" | wc -c | tr -d ' ')" "$2"
}

__sandbox_ask() { # members; a text: the answer is in __sandbox_answer; false when there is none
    __sandbox_reply "$1" "$2"
    while IFS=' ' command read -r __sandbox_op __sandbox_id __sandbox_have __sandbox_answer <&9; do
        [ "$__sandbox_op" = answer ] || continue
        __sandbox_answer=$(printf '%b.' "$__sandbox_answer")
        __sandbox_answer=${__sandbox_answer%.}
        [ "$__sandbox_have" = 1 ]
        return
    done
    return 1
}

# What cells may call

read() { # as the builtin; where it would read the cell's empty stdin, the person is asked
    if ! [ /dev/fd/0 -ef /dev/fd/8 ]; then
        command read "$@"
        return
    fi
    __sandbox_prompt='' __sandbox_next='' __sandbox_secret=false
    for __sandbox_word; do
        if [ "$__sandbox_next" ]; then
            __sandbox_prompt=$__sandbox_word __sandbox_next=''
            continue
        fi
        case $__sandbox_word in
            -*p) __sandbox_next=1 ;;
            -*s*) __sandbox_secret=true ;;
        esac
    done
    if __sandbox_ask "\"op\":\"input\",\"id\":1,\"password\":$__sandbox_secret" "$__sandbox_prompt"; then
        command read "$@" 2>/dev/null <<__SANDBOX_ANSWER
$__sandbox_answer
__SANDBOX_ANSWER
    else
        command read "$@"
    fi
}

display() { # FILE [MIME]: show a picture, a table or a page in the notebook
    case $2:$1 in
        *?:*) __sandbox_mime=$2 ;;
        *.png) __sandbox_mime=image/png ;;
        *.jpg | *.jpeg) __sandbox_mime=image/jpeg ;;
        *.gif) __sandbox_mime=image/gif ;;
        *.svg) __sandbox_mime=image/svg+xml ;;
        *.html | *.htm) __sandbox_mime=text/html ;;
        *.md) __sandbox_mime=text/markdown ;;
        *.json) __sandbox_mime=application/json ;;
        *) __sandbox_mime=text/plain ;;
    esac
    __sandbox_size=$(wc -c <"$1") || return
    if [ "$((__sandbox_size))" -gt 6291456 ]; then
        echo "display: $1: larger than 6 MB: too large to show" >&2
        return 1
    fi
    __sandbox_send "\"op\":\"display\",\"id\":1,\"mime\":\"$__sandbox_mime\"" "$((__sandbox_size))" ''
    head -c "$((__sandbox_size))" <"$1" >&9
    IFS=' ' command read -r __sandbox_answer <&9
}

# What the host asks for between cells

__sandbox_complete() ( # the text before the cursor
    set +f
    line=${1##*[
\;\|\&\(]}
    word=${line##*[ 	\<\>=\"\'\`]}
    before=${line%"$word"}
    case $word in
        \$*) word=${word#\$} word=${word#\{} kind=variable ;;
        */*) kind=file ;;
        *) case ${before##*[! ]*} in "$before") kind=command ;; *) kind=file ;; esac ;;
    esac
    found=$(case $kind in
        variable)
            set | while IFS='=' command read -r name _; do
                case $name in "$word"*) printf '%s\n' "$name" ;; esac
            done ;;
        file)
            for file in "$word"*; do
                if [ -d "$file" ]; then printf '%s/\n' "$file"; elif [ -e "$file" ]; then printf '%s\n' "$file"; fi
            done ;;
        command)
            for name in if for while until case cd echo eval exec exit export read return set shift test trap type ulimit umask unset wait; do
                case $name in "$word"*) printf '%s\n' "$name" ;; esac
            done
            IFS=:
            for place in $PATH; do
                for file in "$place/$word"*; do [ -x "$file" ] && ! [ -d "$file" ] && printf '%s\n' "${file##*/}"; done
            done ;;
    esac)
    __sandbox_reply '"op":"reply"' "$word
$found"
)

__sandbox_inspect() { # the word at the cursor
    __sandbox_reply '"op":"reply"' "$(command -v "$1" >/dev/null 2>&1 && command -V "$1"
        case $1 in *[!a-zA-Z_0-9]* | [0-9]*) ;; *) eval "[ \"\${$1+set}\" ] && printf '%s=%s' \"$1\" \"\$$1\"" ;; esac)"
}

__sandbox_parse() { # a cell: what the shell says of its grammar
    __sandbox_reply '"op":"reply"' "$(LC_ALL=C "$__sandbox_shell" -n -c "$1" 2>&1)"
}

__sandbox_state() { # everything that can be said of the variables, aliases, options and places
    set | while IFS= command read -r line; do
        case $line in PPID=* | LINENO=* | UID=* | EUID=* | __sandbox_*) ;; *) printf '%s\n' "$line" ;; esac
    done
    export -p
    alias | while IFS= command read -r line; do
        case $line in alias\ *) printf '%s\n' "$line" ;; *) printf 'alias %s\n' "$line" ;; esac
    done
    printf "cd -- '"
    __sandbox_rest=$PWD
    while case $__sandbox_rest in *\'*) ;; *) false ;; esac; do
        printf "%s'\\\\''" "${__sandbox_rest%%\'*}"
        __sandbox_rest=${__sandbox_rest#*\'}
    done
    printf "%s'\numask %s\n" "$__sandbox_rest" "$(umask)"
}

__sandbox_ended() { # the EXIT trap
    set +eux
    trap : INT
    trap - EXIT
    __sandbox_send "\"op\":\"done\",\"status\":\"exit\",\"exit\":$__sandbox_status" 0 ''
    unset __sandbox_code __sandbox_json __sandbox_answer __sandbox_rest __sandbox_prompt # the rest of ours is of one line each
    __SANDBOX_STATE=$(__sandbox_state 2>/dev/null)
    if [ "${#__SANDBOX_STATE}" -gt 120000 ]; then # one argument's most (MAX_ARG_STRLEN)
        printf '%s\n' 'the shell ended; its variables are too many to be kept' >&2
        __SANDBOX_STATE=''
    fi
    export __SANDBOX_STATE
    exec "$__sandbox_shell" "$__sandbox_file" 9 "$__sandbox_shell" "$__sandbox_status" "$__sandbox_flags"
}

__sandbox_leave() { trap - EXIT; exit "$1"; }

__sandbox_return() { return "$1"; }

# Cells, one after the other

if [ "${__SANDBOX_STATE+set}" ]; then
    __sandbox_kept=$__SANDBOX_STATE
    unset __SANDBOX_STATE
    eval "$__sandbox_kept" 2>/dev/null
    unset __SANDBOX_STATE __sandbox_kept
fi
trap : INT

while :; do
    IFS=' ' command read -r __sandbox_op __sandbox_keep __sandbox_code <&9 || { [ $? -gt 128 ] && continue; __sandbox_leave 0; }
    __sandbox_code=$(printf '%b.' "$__sandbox_code")
    __sandbox_code=${__sandbox_code%.}
    case $__sandbox_op in
        complete | inspect | parse) "__sandbox_$__sandbox_op" "$__sandbox_code"; continue ;;
        settle) __sandbox_reply '"op":"reply"' ''; continue ;; # signals on their way came before this line
        run) ;;
        *) continue ;;
    esac
    trap 'exit 130' INT
    trap '{ __sandbox_status=$? __sandbox_flags=$-; } 2>/dev/null; __sandbox_ended' EXIT
    case $__sandbox_flags in *x*) __sandbox_code="set -x; $__sandbox_code" ;; esac
    case $__sandbox_flags in *u*) set -u ;; esac
    case $__sandbox_flags in *e*) set -e ;; *) __sandbox_return "$__sandbox_status" ;; esac
    eval "$__sandbox_code"
    { __sandbox_status=$? __sandbox_flags=$-; set +eux; } 2>/dev/null
    trap : INT
    if [ "$__sandbox_status" = 0 ]; then __sandbox_how=ok; else __sandbox_how=exit; fi
    __sandbox_send "\"op\":\"done\",\"status\":\"$__sandbox_how\",\"exit\":$__sandbox_status" 0 ''
    [ "$__sandbox_keep" = 1 ] || __sandbox_leave "$__sandbox_status"
done
__sandbox_status=0 __sandbox_flags=$-
__sandbox_ended # a `break` or `continue` of the cell's own
