def with_chat_template(tokenizer):
    return tokenizer
